#!/usr/bin/env python
"""See what adaptive layers have learned: ``tools/analyze.py ratios`` or ``omega``, ``dynamics``."""

import sys

from ilm_plugins.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["analyze", *sys.argv[1:]]))
