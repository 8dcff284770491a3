"""Random numbers for the layers' networks, which leave the global generators as they were."""

import ctypes
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

#: The GPUs whose generators are forked now, in :func:`drawing_apart`; None outside it.
_forked: ContextVar[frozenset[torch.device] | None] = ContextVar("forked", default=None)


@contextmanager
def drawing_apart(*devices: torch.device) -> Iterator[None]:
    """Draw from other random numbers; afterwards the global generators are as before.

    With a plain norm, which draws nothing, all other modules then start with the same weights. The
    seed follows from the state of the generators of the CPU and the devices, so a script's seed
    determines what is drawn. Layers built within one block go on drawing, and so differ.
    """
    gpus = frozenset(map(_with_index, (d for d in devices if d.type == "cuda")))
    forked = _forked.get()
    if forked is not None and gpus <= forked:
        yield
        return
    with torch.random.fork_rng(gpus):
        states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, gpus)]
        # By address: under FakeTensorMode, torch reads no real tensor.
        content = b"".join(ctypes.string_at(state.data_ptr(), state.nbytes) for state in states)
        # Not the state itself, or the module behind the layer would draw the same numbers.
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu.index].manual_seed(seed)
        token = _forked.set(gpus)
        try:
            yield
        finally:
            _forked.reset(token)


def _with_index(gpu: torch.device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device() if gpu.index is None else gpu.index)
