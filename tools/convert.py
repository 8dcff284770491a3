#!/usr/bin/env python
"""Convert a checkpoint's norms: ``tools/convert.py INPUT OUTPUT --config-file FILE``, or --to."""

import sys

from ilm_plugins.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
