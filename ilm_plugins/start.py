"""Print a line before torch is imported, which takes seconds, if a command of this package runs.

A command is ``python -m ilm_plugins`` or a script in ``tools/``; other programs print nothing.
"""

import sys
from pathlib import Path

program = Path(*sys.argv[:1])
if program.name == "-m":  # so Python calls it until it has found the module
    is_command = "ilm_plugins" in sys.orig_argv
else:
    try:
        is_command = program.resolve().parent == Path(__file__).parents[1] / "tools"
    except OSError:  # the working directory was removed
        is_command = False
if is_command and "torch" not in sys.modules:
    print("importing torch ...", file=sys.stderr, flush=True)
