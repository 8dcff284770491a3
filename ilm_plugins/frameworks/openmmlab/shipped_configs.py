"""Make ``ilm_plugins::mmseg/fcn_r50-d8_ade20k_en.py`` a config of MMEngine.

MMEngine knows only OpenMMLab's packages, and builds what their configs define with their
registries. This package has none: the ``default_scope`` of each of its configs names the
registries, mmdet's, mmseg's, mmpretrain's or MMEngine's.
"""

import functools
from types import ModuleType

import wrapt

from ...configs import get_config_file

PREFIX = "ilm_plugins::"


@functools.cache  # wrap it once
def find_bases(module: ModuleType) -> None:
    wrapt.wrap_function_wrapper(module, "Config._get_cfg_path", _get_cfg_path)


def _get_cfg_path(wrapped, _instance, args: tuple, options: dict) -> tuple[str, str | None]:
    """Return a base file's path, and its modules' scope: None for a config of this package."""
    name = args[0] if args else options.get("cfg_path")
    if isinstance(name, str) and name.startswith(PREFIX):
        return get_config_file(name.removeprefix(PREFIX)), None
    return wrapped(*args, **options)
