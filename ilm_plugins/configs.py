"""Find the configs that the package has, by name, installed or in a checkout."""

import difflib
from pathlib import Path
from typing import Any

from .errors import UserError

#: Where OpenMMLab's packages have their configs; in a checkout it is a link to the folder configs.
FOLDER = Path(__file__).with_name(".mim") / "configs"
#: What stands before the name of a config where a command or detectron2 takes a path.
SCHEME = "ilm_plugins://"


def get_config_file(name: str) -> str:
    """Return the path of one of this package's configs.

    Args:
        name: path below the package's ``configs``, such as "mmseg/fcn_r50-d8_ade20k_en.py". Those
            of detectron2 are also found without "detectron2/", as in its model zoo:
            "mask_rcnn_R_50_FPN_batch2_ilmgn.yaml".

    Raises:
        UserError: there is no such config; the message has names that are near.
    """
    for path in (FOLDER / name, FOLDER / "detectron2" / name):
        if path.is_file():
            return str(path)
    files = (*FOLDER.rglob("*.py"), *FOLDER.rglob("*.yaml"))
    names = {str(path.relative_to(FOLDER)).removeprefix("detectron2/"): path for path in files}
    near = difflib.get_close_matches(name, names, n=3, cutoff=0)
    raise UserError(
        f"ilm_plugins has no config {name!r}; near ones are {', '.join(near)}; all are in {FOLDER}"
    )


def resolve(path: Any) -> Any:
    """Return the path of the config that ``ilm_plugins://NAME`` names; all else as it is."""
    # fvcore takes a _BASE_ for relative to the file, whose folder then stands before the scheme.
    is_ours = isinstance(path, str) and SCHEME in path
    return get_config_file(path.partition(SCHEME)[2]) if is_ours else path
