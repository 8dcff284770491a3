"""Make ``mmcv._ext`` the stand-in beside this file, where mmcv is installed without it.

Python runs this at its start when this folder is on PYTHONPATH, as it is in all that tests start.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class ExtensionFinder(MetaPathFinder):
    """Finds ``mmcv._ext``, after all other finders."""

    def find_spec(self, name, path=None, target=None):
        if name != "mmcv._ext":
            return None
        file = Path(__file__).with_name("mmcv_ext.py")
        return importlib.util.spec_from_file_location(name, file)


sys.meta_path.append(ExtensionFinder())
