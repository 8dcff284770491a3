#!/usr/bin/env python
"""Train or evaluate a config: ``tools/train_net.py --config-file FILE [KEY VALUE ...]``."""

import sys

from ilm_plugins.cli.train_net import main

if __name__ == "__main__":
    sys.exit(main())
