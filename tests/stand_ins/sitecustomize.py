"""Make ``mmcv._ext`` the stand-in beside this file, where mmcv is installed without it.

Python runs this at its start when this folder is on PYTHONPATH, as it is in all that tests start.
"""

import sys
from importlib.util import spec_from_file_location
from pathlib import Path


class ExtensionFinder:
    """Finds ``mmcv._ext``, after all other finders."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "mmcv._ext":
            return spec_from_file_location(name, Path(__file__).with_name("mmcv_ext.py"))
        return None


sys.meta_path.append(ExtensionFinder)
