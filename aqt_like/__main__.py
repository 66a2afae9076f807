"""This command describes number formats: `python -m aqt_like e3m2 int4`."""

import sys

from aqt_like import explain

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m aqt_like FORMAT [FORMAT …], as in e3m2, int4, e4m3fn, bf16")
    try:
        for name in sys.argv[1:]:
            explain(name)
    except ValueError as error:
        sys.exit(f"error: {error}")
