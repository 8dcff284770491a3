"""All commands end with one status without any package; the arguments: an option, the status."""

import sys

for package in ("torch", "numpy", "pandas", "matplotlib", "PIL", "detectron2", "mmengine"):
    sys.modules[package] = None  # its import fails

from ilm_plugins.__main__ import COMMANDS, main

option, status = sys.argv[1], int(sys.argv[2])
for words in ([option], *([name, option] for name in COMMANDS)):
    try:
        sys.exit(f"{words}: {main(words)}")
    except SystemExit as ended:
        assert ended.code == status, (words, ended)
