#!/usr/bin/env python
"""See what adaptive layers have learned: ``tools/analyze.py ratios`` or ``omega``, ``dynamics``."""

import sys

try:
    from ilm_plugins.cli.analyze import main
except ModuleNotFoundError as error:
    if error.name == "ilm_plugins":
        raise
    needed = f"{error.name}, which is not installed; run pip install 'ilm_plugins[analysis]'"
    print(f"analyze.py: error: images and pictures need {needed}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
