#!/usr/bin/env python
"""Report runs on Facades beside the paper: ``tools/report_facades.py --run DIR COMMAND [...]``."""

import sys

from ilm_plugins.integrations.openmmlab.facades import main

if __name__ == "__main__":
    sys.exit(main())
