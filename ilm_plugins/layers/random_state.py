"""Random numbers for the layers' networks, beside torch's generators, which stay as they are."""

import ctypes
import functools
import hashlib
import threading
from collections.abc import Callable

import torch
from torch import Tensor

#: torch's functions that set the state of the CPU's generator, in ``torch`` and ``torch.random``.
SETTING = "manual_seed", "set_rng_state"

_lock = threading.Lock()
#: The latest state of torch's generator from which a seed was made -> the number of its seeds.
_seeds: dict[bytes, int] = {}


def draw(tensor: Tensor, distribution: Callable[..., Tensor], *numbers: float) -> None:
    """Fill a tensor by a function of ``nn.init``, such as ``nn.init.normal_``, and its numbers.

    With a plain norm, which draws nothing, all other modules then start with the same weights. A
    tensor on the meta device stays as it is.
    """
    if not tensor.is_meta:
        generator = torch.Generator(tensor.device).manual_seed(_new_seed())
        distribution(tensor, *numbers, generator=generator)


def _new_seed() -> int:
    """Return a seed that follows from the state of torch's CPU generator.

    Layers that are built in a row find the same state: each tensor drawn there gets another seed.
    """
    state = torch.get_rng_state()
    # By address: under FakeTensorMode, torch reads no real tensor.
    content = ctypes.string_at(state.data_ptr(), state.nbytes)
    with _lock:
        count = _seeds.get(content, 0)
        _seeds.clear()
        _seeds[content] = count + 1
    digest = hashlib.sha256(content + count.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:8], "big")


def _beginning_anew(function: Callable) -> Callable:
    """Wrap a function that seeds torch's generator: what is drawn afterwards follows from it."""

    @functools.wraps(function)
    def seeding(*args, **options):
        _seeds.clear()
        return function(*args, **options)

    return seeding


# A model that is built again from the same seed finds a state that was seen before; that it was
# set anew, and not left since, shows only here.
for _name in SETTING:
    _function = _beginning_anew(getattr(torch.random, _name))
    for _module in (torch, torch.random):
        setattr(_module, _name, _function)
