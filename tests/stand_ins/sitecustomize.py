"""Make ``mmcv._ext`` the stand-in beside this file, where mmcv is installed without it.

Python runs this at its start when this folder is on PYTHONPATH, as it is in all that tests start.
"""

import sys
from importlib.util import spec_from_file_location
from pathlib import Path
from types import SimpleNamespace


def find_spec(name, path=None, target=None):
    stand_in = Path(__file__).with_name("mmcv_ext.py")
    return spec_from_file_location(name, stand_in) if name == "mmcv._ext" else None


sys.meta_path.append(SimpleNamespace(find_spec=find_spec))
