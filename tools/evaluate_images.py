#!/usr/bin/env python
"""Compare two folders of images: ``tools/evaluate_images.py OUTPUTS TARGETS``."""

import sys

from ilm_plugins.pix2pix.metrics import main

if __name__ == "__main__":
    sys.exit(main())
