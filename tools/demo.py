#!/usr/bin/env python
"""Train small models on the generated `shapes` and show them: ``tools/demo.py CONFIG [...]``."""

import sys

from ilm_plugins.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
