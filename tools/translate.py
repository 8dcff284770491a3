#!/usr/bin/env python
"""Translate a folder of images: ``tools/translate.py CHECKPOINT INPUT OUTPUT``."""

import sys

from ilm_plugins.pix2pix.translate import main

if __name__ == "__main__":
    sys.exit(main())
