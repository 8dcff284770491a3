#!/usr/bin/env python
"""Train or evaluate a config: ``tools/train_net.py --config-file FILE [KEY VALUE ...]``."""

import sys

from ilm_plugins.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
