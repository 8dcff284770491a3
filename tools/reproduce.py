#!/usr/bin/env python
"""The papers' tables: ``tools/reproduce.py list``, ``run TABLE [ROW]``, ``report``."""

import sys

from ilm_plugins.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
