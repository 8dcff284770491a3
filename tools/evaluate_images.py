#!/usr/bin/env python
"""Compare two folders of images: ``tools/evaluate_images.py OUTPUTS TARGETS``."""

import sys

from ilm_plugins.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["evaluate-images", *sys.argv[1:]]))
