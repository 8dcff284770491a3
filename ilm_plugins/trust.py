"""Whether checkpoints and yaml configs may run code: only within ``loading(unsafe=True)``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

#: Environment variables of torch. With the first, torch.load refuses code even if its caller allows
#: it; with the second, torch.load runs code unless its caller forbids it.
REFUSE_CODE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
ALLOW_CODE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

#: ``unsafe`` of each ``loading`` that has been entered, the innermost last. The environment does
#: not count: a variable that a user once set for another program is no consent.
_entered = [False]


@contextmanager
def loading(unsafe: bool = False) -> Iterator[None]:
    """Forbid or allow code in checkpoints and yaml configs.

    In this process and its child processes, ``torch.load`` obeys it, too.
    """
    before = {name: os.environ.pop(name, None) for name in (REFUSE_CODE, ALLOW_CODE)}
    os.environ[ALLOW_CODE if unsafe else REFUSE_CODE] = "1"
    _entered.append(unsafe)
    try:
        yield
    finally:
        _entered.pop()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def code_is_allowed() -> bool:
    """Whether checkpoints and yaml configs may run code."""
    return _entered[-1]
