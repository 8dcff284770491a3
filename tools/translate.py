#!/usr/bin/env python
"""Translate a folder of images: ``tools/translate.py CHECKPOINT INPUT OUTPUT``."""

import sys

from ilm_plugins.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["translate", *sys.argv[1:]]))
