"""Make ``ilm_plugins://mask_rcnn_R_50_FPN_batch2_ilmgn.yaml`` a path for detectron2."""

import functools
from types import ModuleType
from typing import Any

import wrapt

from ...configs import SCHEME, resolve


def register_handler(module: ModuleType) -> None:
    """Make ``ilm_plugins://NAME`` valid for detectron2's PathManager."""

    class Handler(module.PathHandler):
        def _get_supported_prefixes(self) -> list[str]:
            return [SCHEME]

        def _get_local_path(self, path: str, force: bool = False, **_: Any) -> str:
            return resolve(path)

        def _isfile(self, path: str, **_: Any) -> bool:
            return bool(resolve(path))  # or an error that names near ones

        def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any):
            return open(resolve(path), mode, buffering)

    module.PathManager.register_handler(Handler(), allow_override=True)


@functools.cache  # wrap it once
def find_bases(module: ModuleType) -> None:
    wrapt.wrap_function_wrapper(module, "CfgNode.load_yaml_with_base", _load_yaml_with_base)


def _load_yaml_with_base(wrapped, _cls, args: tuple, options: dict) -> dict[str, Any]:
    return wrapped(*map(resolve, args), **{name: resolve(path) for name, path in options.items()})
