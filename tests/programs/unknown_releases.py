"""Releases of frameworks in which all that is extended is missing; argument: an empty folder."""

import importlib
import sys
import warnings
from pathlib import Path

from ilm_plugins.frameworks import HOOKS

folder = Path(sys.argv[1])
for name in HOOKS:
    path = folder
    for part in name.split("."):
        path /= part
        path.mkdir(exist_ok=True)
        (path / "__init__.py").touch()
sys.path.insert(0, str(folder))
for name in HOOKS:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = importlib.import_module(name)
    assert module.__file__ == str(folder.joinpath(*name.split("."), "__init__.py"))
    told = [text for w in caught if f"leaves {name} as it is" in (text := str(w.message))]
    assert len(told) == 1, (name, told)
    assert "\n" not in told[0]
