#!/usr/bin/env python
"""Write the generated data set `shapes` to ROOT/shapes."""

import sys

from ilm_plugins.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["make-shapes", *sys.argv[1:]]))
