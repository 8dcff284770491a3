"""The launches of a layer for inputs of one shape, dtype, layout and device.

A pass is a few allocations and at most three launches; four forward, if processes share a batch.
"""

import functools
from collections import defaultdict, namedtuple
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..activation import Activation
from ..network import Needs, Network, Tensors
from ..plans import KernelPlan
from ..shared_batch import Processes
from . import one_read, rescaling, streaming
from .devices import Map, divide_up, padded
from .launch import Launch, counters, current_stream
from .programs import COLUMNS
from .sizes import Sizes, find_sizes, pointers_to, rescale_of

#: Gradients are added in groups of at least MEMBERS instances, in at most GROUPS groups.
MEMBERS, GROUPS = 16, 16
#: Elements of the tiles in which a network's program pools what splits have stored.
POOLED = 512

#: BN's statistics of the batch: where the kernel writes them, and what it updates.
Batch = namedtuple("Batch", ("saved", "running_mean", "running_var", "tracked"))


def find_plan(
    x: Tensor,
    num_groups: int,
    network: Network,
    tensors: Tensors,
    activation: Activation | None = None,
) -> "TritonPlan | None":
    """Return the plan for x; see engine/plain.py."""
    uses_batch = tensors[-1] is None and network.mixes_batch
    dtype = getattr(tensors[0], "dtype", torch.float32)  # a missing tensor raises later
    return _plan(network, num_groups, Map.of(x), dtype, uses_batch, activation)


@functools.lru_cache(maxsize=4096, typed=True)  # named tuples of two classes may be equal
def _plan(
    network: Network, num_groups: int, map: Map, dtype: torch.dtype, *options: Any
) -> "TritonPlan | None":
    sizes = find_sizes(network, map.shape[1], num_groups)
    return None if sizes is None else TritonPlan(network, sizes, map, dtype, *options)


class TritonPlan(KernelPlan):
    """The passes of a layer for maps of one kind.

    Kernels find what they share by its place among values in float32:

    saved
        copies of the network's buffers, and behind BN's moments of the batch the number of values
        that a channel has there (``kept``); mean and var (N, G'); scale and shift (N, C), if an
        activation's gradient needs them
    work, forward
        scale and shift (N, C), if ``saved`` has none; mean and var (N, C, splits)
    work, backward
        two sums (N, C, splits); scale (N, C), slope and offset (N, G') of dx; the gradients of each
        instance (N, ``gradients``); the sums of such rows over groups of instances

    For a map that is read once, the backward work has only the last two.
    """

    def __init__(
        self,
        network: Network,
        sizes: Sizes,
        map: Map,
        dtype: torch.dtype,
        uses_batch: bool,
        activation: Activation | None,
    ) -> None:
        index = -1 if map.device.index is None else map.device.index
        num_groups = sizes.fine
        super().__init__(network, num_groups, map.shape[1], dtype, index, 16, map.is_contiguous)
        self.map, self.uses_batch = map, uses_batch
        self.activation = activation
        self.saved_dtype = torch.float32
        self.of_network = sizes
        self.n = map.shape[0]
        self.moments = self.n * num_groups
        self.members = max(MEMBERS, divide_up(self.n, GROUPS))
        self.shape = one_read.shape_for(map, sizes)
        self.keeps, size = activation is not None, self.n * map.shape[1]
        #: Where scale and shift begin in the tensor that has them.
        first = sizes.kept + 2 * self.moments if self.keeps else 0
        self.coefficients_at = first, first + size
        self.num_saved = sizes.kept + 2 * (self.moments + self.keeps * size)
        self.pointers = pointers_to(type(network))  # type: ignore[arg-type]
        self.rescale = rescale_of(network)
        first = sizes.at.running_mean if uses_batch else 0
        #: Where ``saved`` has the batch's means, variances, and number of values.
        self.of_batch = slice(first, first + 2 * map.shape[1] + 1)
        #: Weight of the newest batch in running statistics.
        self.momentum = float(getattr(network, "momentum", 0.0))
        self.no_buffers = (None,) * len(sizes.buffers)
        #: Arguments of the kernels of both passes, see :class:`.launch.Launch`.
        self.named: dict[str, Any] = {
            **{"moments": self.moments, "members": self.members},
            "group_size": map.shape[1] // num_groups,
            "count": float(map.shape[1:].numel() // num_groups),  # values of one channel group
            **{"RESCALE": self.rescale.function, "SIZES": sizes},
            **{"ACTIVATION": activation, "KEEPS": self.keeps, "mean_at": sizes.kept},
        }
        if self.shape is not None:
            self.plan_one_read(self.shape)
        else:
            self.plan_streaming()
        #: How dy and x are off multiples of 16 bytes, and which gradients are needed -> launches.
        self.backward_plans: dict[tuple[int, ...], _BackwardLaunches] = {}

    # ---- forward

    def plan_one_read(self, shape: streaming.Shape) -> None:
        instance = self.map.shape[1:].numel()
        chunks = instance // (shape.block_c * shape.vector)
        self.options = {"num_warps": min(16, max(4, shape.block_c * shape.block_l // 512))}
        if self.activation is not None:  # else ptxas spills some registers to fit more programs
            self.options["maxnreg"] = 128
        named = self.named | {"chunks": chunks, "SHAPE": shape}
        self.launch = Launch(one_read.one_read_kernel, self.n, named, **self.options)

    def plan_streaming(self) -> None:
        n, c = self.map.shape[:2]
        sizes, tiling = self.of_network, streaming.Tiling.for_map(self.map)
        # Moments of channels and splits, which the network's kernel pools; or already of groups.
        run = c // self.num_groups * tiling.splits
        self.is_pooled, self.num_work = run > 1, 0 if self.keeps else 2 * n * c
        mean_at = sizes.kept
        if self.is_pooled:
            mean_at = self.num_work
            self.num_work += 2 * self.moments * run
        named = self.named | tiling.named
        named |= {"run": run, "batch_at": self.of_batch.start, "momentum": self.momentum}
        named |= dict(zip(("scale_at", "shift_at"), self.coefficients_at, strict=True))
        plan_moments = functools.partial(
            Launch,
            streaming._moments_kernel,
            n * tiling.blocks * tiling.splits,
            named | {"mean_at": mean_at, "var_at": self.moments * run},
            num_warps=tiling.warps,
            maxnreg=80,
        )
        #: Which running statistics are updated -> launch.
        self.launches_of_moments: dict[tuple, Launch] = defaultdict(plan_moments)
        #: The number of processes, and which running statistics are updated -> launch.
        self.launches_of_pooling: dict[tuple, Launch] = {}
        named["BLOCK"] = pooled_at_once(run, self.num_groups) if run > 1 else 0
        options = self.rescale.options(sizes)
        self.launch_rescale = Launch(rescaling.rescale_kernel, n, named, **options)
        programs = n * tiling.blocks * tiling.tiles
        self.launch_affine = Launch(
            streaming._affine_kernel, programs, named, num_warps=tiling.warps
        )

    def forward(self, x: Tensor, tensors: Tensors, running: tuple, *_) -> tuple[Tensor, Tensor]:
        if self.runs_elsewhere():
            with torch.cuda.device(x.device):
                return self.forward(x, tensors, running)
        y = torch.empty_like(x)
        saved = x.new_empty(self.num_saved, dtype=torch.float32)
        pointers, stream = self.pointers(*tensors, saved), current_stream(self.index)
        if self.shape is not None:
            self.launch(stream, x, y, saved, pointers)
            return y, saved
        counts = batch = None
        moved = (*running[:2], *running[3:]) if running else ()  # without the momentum
        work = saved.new_empty(self.num_work) if self.num_work else saved
        if self.uses_batch:
            counts = counters(self.index, stream)
            batch = Batch(saved, *moved, *(None,) * (3 - len(moved)))
        moments = work if self.is_pooled else saved
        kind = len(moved), moved[2].dtype if len(moved) > 2 else None
        if self.processes is None:
            self.launches_of_moments[kind](stream, x, moments, counts, batch)
        else:  # the running statistics follow the batch of all processes
            alone = Batch(saved, None, None, None)
            self.launches_of_moments[0, None](stream, x, moments, counts, alone)
            batches = self.processes.gather(saved[self.of_batch])
            self.launch_of_pooling(len(batches), kind)(stream, batches, batch)
        self.launch_rescale(stream, saved, work, pointers)
        coefficients = saved if self.keeps else work
        self.launch_affine(stream, x, y, saved, coefficients, coefficients)
        if moved:
            increment_version(moved)
        return y, saved

    def launch_of_pooling(self, processes: int, kind: tuple) -> Launch:
        """Return the launch that pools the batches of processes."""
        launch = self.launches_of_pooling.get((processes, kind))
        if launch is None:
            channels, block = self.map.shape[1], padded(processes)
            block_c = min(padded(channels), max(1, streaming.BATCH_TILE.value // block))
            launch = self.launches_of_pooling[processes, kind] = Launch(
                streaming.pool_batches_kernel,
                divide_up(channels, block_c),
                {
                    **{"batch_at": self.of_batch.start, "momentum": self.momentum},
                    **{"channels": channels, "batches": processes},
                    **{"BLOCK_C": block_c, "BLOCK": block},
                },
            )
        return launch

    # ---- backward

    def backward(
        self, dy: Tensor, x: Tensor, saved: Tensor, parameters: Tensors, needs: Needs, *_
    ) -> list[Tensor | None]:
        """Return the gradients of x and of each parameter; None for x if ``needs`` is false."""
        if self.runs_elsewhere():
            with torch.cuda.device(x.device):
                return self.backward(dy, x, saved, parameters, needs)
        # None and alignment select another compiled kernel.
        kind = dy.data_ptr() & 15, x.data_ptr() & 15, self.processes is not None, *needs
        plan = self.backward_plans.get(kind)
        if plan is None:
            plan = _BackwardLaunches(self, not any(kind[:2]), any(needs[1:]), all(needs))
            self.backward_plans[kind] = plan
        pointers = self.pointers(*parameters, *self.no_buffers, saved)
        stream = current_stream(self.index)
        work = saved.new_empty(plan.num_work)
        if plan.needs_all:
            d_x, *gradients = map(torch.empty_like, (x, *parameters))
        else:
            d_x, *gradients = [
                torch.empty_like(t) if need else None
                for t, need in zip((x, *parameters), needs, strict=True)
            ]
        counts = counters(self.index, stream) if plan.counts else None
        if self.shape is not None:
            plan.launch(stream, dy, x, d_x, saved, work, counts, pointers, (*gradients,))
        else:
            plan.launch_sums(stream, dy, x, saved, work)
            plan.launch_vjp(stream, saved, work, counts, pointers)
            if self.processes is not None:
                self.processes.add_up(work[plan.shared_sums])
            launch_dx = plan.launch_gradients if d_x is None else plan.launch_dx
            scale = saved if self.keeps else work
            values = saved, scale, work, work, saved, work, (*gradients,)
            launch_dx(stream, dy, x, d_x, *values)
        return [d_x, *gradients]

    # ---- both

    def runs_elsewhere(self) -> bool:
        """Return whether another GPU than the maps' is the current one."""
        return self.index >= 0 and torch.cuda.current_device() != self.index

    def for_copies(self) -> "TritonPlan":
        if self.dtype is torch.float32:
            return self
        options = self.uses_batch, self.activation
        plan = _plan(self.network, self.num_groups, self.map, torch.float32, *options)
        assert plan is not None
        return plan if self.processes is None else plan.over(self.processes)

    def over(self, processes: Processes) -> "TritonPlan":
        plan = object.__new__(TritonPlan)
        plan.__dict__.update(self.__dict__, processes=processes)
        return plan

    def buffers(self, saved: Tensor) -> list[Tensor]:
        """Return the network's buffers, as vectors, at the time of the forward pass."""
        return [saved[at : at + size] for _, at, size in self.of_network.buffers]


class BackwardWork(NamedTuple):
    """Where the parts of a streaming backward pass's work begin; each ends where the next begins.

    The sums (N, C, splits) of dy * (x - mean) are the first part, from 0 on.
    """

    sum_at: int  #: sums of dy (N, C, splits)
    scale_at: int  #: scale of dx (N, C)
    slope_at: int  #: slope of dx (N, G')
    offset_at: int  #: offset of dx (N, G')
    rows_at: int  #: gradients of the tensors, a row for each instance (N, ``Sizes.gradients``)
    groups_at: int  #: gradients of BN's moments, added up over groups of instances (groups, 2 * C)
    batch_at: int  #: their sums (2 * C)
    size: int


class _BackwardLaunches:
    """The launches of a plan's backward pass.

    ``adds`` tells whether a parameter needs a gradient, ``needs_all`` whether x and all do.
    """

    def __init__(self, plan: TritonPlan, is_aligned: bool, adds: bool, needs_all: bool) -> None:
        self.needs_all = needs_all
        map = plan.map._replace(is_aligned=is_aligned)
        if plan.shape is not None:
            self.plan_one_read(plan, map)
        else:
            self.plan_streaming(plan, map, adds)

    def plan_one_read(self, plan: TritonPlan, map: Map) -> None:
        sizes, self.counts = plan.of_network, True
        # A row for each instance, and one for each group of instances.
        self.num_work = (plan.n + divide_up(plan.n, plan.members)) * sizes.gradients
        kernel, shape = one_read.one_read_vjp_kernel, one_read.shape_for(map, sizes) or plan.shape
        chunks, length = map.shape[1:].numel() // (shape.block_c * shape.vector), 0
        if plan.keeps:
            kernel, shape = one_read.one_read_activation_vjp_kernel, one_read.shape_of_rows(map)
            length = map.shape[2:].numel()
        named = {"chunks": chunks, "length": length, "SHAPE": shape}
        named |= plan.named | {"PARAMETERS": sizes.parameters}
        self.launch = Launch(kernel, plan.n, named, **plan.options)

    def plan_streaming(self, plan: TritonPlan, map: Map, adds: bool) -> None:
        n, c = map.shape[:2]
        sizes, tiling = plan.of_network, streaming.Tiling.for_map(map)
        self.counts, of_batch = plan.uses_batch, 2 * c if plan.uses_batch else 0
        sums, groups = n * c * tiling.splits, divide_up(n, plan.members)
        parts = sums, sums, n * c, plan.moments, plan.moments, n * sizes.gradients
        work = BackwardWork(*accumulate((*parts, groups * of_batch, of_batch)))
        self.num_work = work.size
        #: Where the work has the sums that processes add up.
        self.shared_sums = slice(work.batch_at, work.size)
        kept_at = plan.coefficients_at if plan.keeps else (None, None)
        named: dict[str, Any] = {
            **plan.named,
            **tiling.named,
            **work._asdict(),
            **dict(zip(("kept_scale_at", "kept_shift_at"), kept_at, strict=True)),
        }
        programs = n * tiling.blocks * tiling.splits
        options = {"num_warps": tiling.warps, "maxnreg": 128}
        self.launch_sums = Launch(streaming._sums_kernel, programs, named, **options)
        named["BLOCK"] = pooled_at_once(tiling.splits, c) if tiling.splits > 1 else 0
        options = plan.rescale.options(sizes)
        self.launch_vjp = Launch(rescaling.rescale_vjp_kernel, n, named, **options)
        # The first programs of dx add the columns of the gradients of parameters.
        last_at, last_size, _ = sizes.parameters[-1]
        adding = divide_up(last_at + last_size, COLUMNS.value) if adds else 0
        named |= {"shift_at": kept_at[1], "batch_mean_at": plan.of_batch.start}
        named |= {"step": sizes.gradients, "instances": n, "adding": adding}
        named |= {"BATCH": plan.uses_batch, "PARAMETERS": sizes.parameters if adds else ()}
        options = {"num_warps": tiling.warps}
        if plan.keeps:  # else ptxas spills some registers to fit a fourth program
            named["scale_at"], options["maxnreg"] = kept_at[0], 80
        programs = adding + n * tiling.blocks * tiling.tiles
        self.launch_dx = Launch(streaming._dx_kernel, programs, named, **options)
        self.launch_gradients = Launch(streaming._dx_kernel, adding, named, **options)


def pooled_at_once(run: int, rows: int) -> int:
    """Return how many values of each of ``rows`` runs a program pools at once."""
    return max(1, min(padded(run), POOLED // padded(rows)))
