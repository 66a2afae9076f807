"""`python -m launch.inspect`, which is now `launch.layers`; a file of this name in launch/ would hide Python's own."""

import sys

from launch.layers import main

if __name__ == "__main__":
    print("launch.inspect is now called launch.layers: python -m launch.layers", file=sys.stderr)
    main()
