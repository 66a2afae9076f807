"""`python -m launch.inspect`, which is now `launch.layers`; a file of this name in launch/ would hide Python's own.

Its `--input` had a batch axis before the shape of an example: a leading 1 is left out here.
"""

import sys

from launch.layers import main

if __name__ == "__main__":
    print("launch.inspect is now called launch.layers: python -m launch.layers", file=sys.stderr)
    main([argument.replace("--input=1,", "--input=") for argument in sys.argv[1:]])
