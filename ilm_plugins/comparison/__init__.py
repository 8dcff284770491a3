"""Comparisons: train one model with several norms, and report differences.

A comparison goes through these files, from its plan to its report:

- ``plan`` of norms (``arms``) and seeds; its source is a config (``config_source``,
  ``compared_config``, ``compared_models``, ``start_weights``), a script (``command_source``,
  ``script_metric``) or a function (``function_source``)
- ``run``: their folders, their processes by executors, and their outcomes
- ``results``: numbers, by a ``unit``, with the folder's ``history``; words in ``answers``, those
  without a test in ``plain_states``
- ``report`` for compare.md and .csv, ``plot`` for .png, and ``page`` for .html

``comparison`` calls them in this order, and ``function_api`` is its call in Python.
"""

from importlib import import_module
from typing import Any

#: Public name -> its module, imported on first use: a run needs few of them.
_MODULES = {
    "Comparison": "function_api",
    "ConfigSource": "config_source",
    "Plan": "plan",
    "compare_plan": "comparison",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
