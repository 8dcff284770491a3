"""Run a model in evaluation mode, and see the inputs of its layers."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn


def _uncompiled() -> AbstractContextManager:
    """Return a context in which torch.compile has no effect."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, compiled models to run uncompiled; undo both at exit.

    Code that torch.compile has compiled does not call hooks that are registered later.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _uncompiled():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def watching(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``see`` with name and input of each call."""

    def hook(name: str, layer: nn.Module, inputs: tuple, named: dict) -> None:
        see(name, inputs[0] if inputs else named["x"])

    with ExitStack() as hooks:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True)
            hooks.callback(handle.remove)
        yield
