"""Run a command without a package; the arguments are the package and the command's words."""

import runpy
import sys

_, package, *words = sys.argv
sys.modules[package] = None  # its import fails
sys.argv = ["ilm_plugins", *words]
runpy.run_module("ilm_plugins", run_name="__main__", alter_sys=True)
