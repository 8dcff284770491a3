"""Names of older versions, which are accepted with a warning that says the name of today."""

import warnings
from collections.abc import Container, Mapping
from typing import Any

from torch import nn

from .options import check

#: Older name -> today's name, of an option, a key of NORMS, or a buffer (which gives no warning). A
#: name that a class or NORMS still has is not renamed there.
RENAMED = {"running_var": "running_variance"}


def current_name(name: str, known: Container[str]) -> str:
    """Return the known name that replaced an older one, with a warning; other names as they are."""
    new = RENAMED.get(name)
    if name in known or new is None or new not in known:
        return name
    # Unlike a DeprecationWarning, it is shown to users of the frameworks that build the layers.
    warnings.warn(f"{name} is called {new} now; write {new}", FutureWarning, stacklevel=4)
    return new


def by_current_names(options: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """Return options under today's names; a value under an older name replaces "auto"."""
    named = dict(options)
    for option in options:
        name = current_name(option, known)
        if name != option:
            value, other = named.pop(option), named.get(name, "auto")
            check(other == "auto", f"{option} and {name} are the same option; give only {name}")
            named[name] = value
    return named


def with_older_keys(norms: Mapping[str, type[nn.Module]]) -> dict[str, type[nn.Module]]:
    """Return classes by key; the class of an older key gives the layer of today, and warns."""
    older = {key: new for key, new in RENAMED.items() if new in norms and key not in norms}
    return {**norms, **{key: _warning_class(key, new, norms) for key, new in older.items()}}


def _warning_class(key: str, new: str, norms: Mapping[str, type[nn.Module]]) -> type[nn.Module]:
    # mmcv tells a norm by its class; what ``__new__`` returns is of another class, without a call
    # of ``__init__``.
    def construct(_cls: type, *args: Any, **options: Any) -> nn.Module:
        current_name(key, norms)
        return norms[new](*args, **options)

    return type(norms[new].__name__, (norms[new],), {"__new__": construct})
