"""Kernel launches, and the counters by which programs find out which one finishes last."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
from torch import Tensor

#: Triton's version, and those whose C function takes the arguments that :func:`_launcher` passes.
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
KNOWN = (3, 6), (3, 7), (3, 8), (3, 9)
#: The most counters that one launch uses.
COUNTERS = 8192

#: Arguments of kernels by name: constants, and where values begin in the tensors that have them.
Named = Mapping[str, Any]


class Launch:
    """A kernel with its grid, its last arguments and its options, which are the same in each call.

    The kernel takes its last arguments, by their names, from ``named``, which may have others. The
    first call compiles the kernel, or finds it among those that Triton has compiled. Further calls
    skip Triton's look-ups, so each call must pass the same types, 16-byte alignment, and None in
    the same places.
    """

    __slots__ = ("again", "arguments", "grid", "kernel", "options")

    def __init__(self, kernel: Any, programs: int, named: Named, **options: int) -> None:
        self.kernel, self.grid = kernel, (programs, 1, 1)
        self.arguments = tuple(named[name] for name in kernel.arg_names if name in named)
        # Triton's default differs by version. Fused, a product is not rounded before it is added.
        self.options = {"enable_fp_fusion": True, **options}
        self.again: Callable[[int | None, tuple], None] | None = None

    def __call__(self, stream: int | None, *arguments: Any) -> None:
        if self.again is not None:
            self.again(stream, arguments)
            return
        compiled = self.kernel[self.grid](*arguments, *self.arguments, **self.options)
        if isinstance(compiled, triton.compiler.CompiledKernel):
            self.again = _launcher(compiled, self.grid, self.arguments)


def _launcher(
    compiled: Any, grid: tuple[int, int, int], last: tuple
) -> Callable[[int | None, tuple], None]:
    """Return a function of a stream and of all arguments but the last, which launches a kernel.

    It calls the C function of Triton's launcher, because the Python code before that takes as long.
    Triton's runner serves other versions, profilers' hooks, and kernels that a tool has changed.
    """
    runner, launcher = compiled[grid], compiled.run

    def by_runner(stream: int | None, arguments: tuple) -> None:
        runner(*arguments, *last, stream=stream)

    if (
        VERSION not in KNOWN
        or launcher.global_scratch_size
        or launcher.profile_scratch_size
        or getattr(launcher, "gsan_enabled", False)
    ):
        return by_runner
    launch, function, no_memory = launcher.launch, compiled.function, (None, None)
    options = launcher.launch_cooperative_grid, launcher.launch_pdl
    metadata = compiled.packed_metadata, None, None, None  # nothing for hooks

    def by_arguments(stream: int | None, arguments: tuple) -> None:
        if has_hooks():
            by_runner(stream, arguments)
        else:
            launch(*grid, stream, function, *before, *arguments, *last)

    def by_tuple(stream: int | None, arguments: tuple) -> None:
        if has_hooks():
            by_runner(stream, arguments)
        else:
            launch(*grid, stream, function, *before, (*arguments, *last))

    before: tuple
    if VERSION == (3, 6):
        before = *options, *no_memory, *metadata
        return by_arguments
    before = *options, *metadata, *no_memory, launcher.arg_annotations, launcher.kernel_signature
    return by_tuple


def has_hooks() -> bool:
    """Return whether a profiler is told of launches, by a hook or by a list of some."""
    enter, leave = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def current_stream(index: int) -> int | None:
    """Return the number of the current stream of a GPU by its index; None for the interpreter."""
    return None if index < 0 else triton.runtime.driver.active.get_current_stream(index)


def counters(index: int, stream: int | None) -> Tensor:
    """Return zeroed counters for one stream; each launch resets those that it uses."""
    # A captured graph may be replayed on any stream, at the same time as other launches.
    if index >= 0 and torch.cuda.is_current_stream_capturing():
        return _zeros(index)
    return _counters(index, stream)


@functools.cache
def _counters(index: int, stream: int | None) -> Tensor:
    return _zeros(index)


def _zeros(index: int) -> Tensor:
    device = torch.device("cuda", index) if index >= 0 else "cpu"
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)
