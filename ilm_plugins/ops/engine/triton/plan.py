"""The launches of a layer for inputs of one shape, dtype, layout and device.

A pass is a few allocations and at most three launches; four forward, if processes share a batch.
"""

import functools
from collections import defaultdict, namedtuple
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import plans
from ..activation import Activation
from ..layouts import becomes_contiguous, is_dense
from ..network import Network, Tensors
from ..shared_batch import Processes
from . import one_read, rescaling, streaming
from .devices import Map, divide_up, padded
from .launch import Launch, counters, current_stream
from .programs import COLUMNS
from .sizes import find_sizes, pointers_to, rescale_of

#: Gradients are added in groups of at least MEMBERS instances, in at most GROUPS groups.
MEMBERS, GROUPS = 16, 16
#: Elements of the tiles in which a network's program pools what splits have stored.
POOLED = 512

#: BN's statistics of the batch: where the kernel writes them, and what it updates.
Batch = namedtuple("Batch", ("statistics", "running_mean", "running_var", "tracked"))


def find_plan(
    x: Tensor,
    num_groups: int,
    network: Network,
    tensors: Tensors,
    running: Tensors,
    activation: Activation | None = None,
) -> "LayerPlan | None":
    """Return the plan for x; see engine/plain.py."""
    uses_batch = tensors[-1] is None and network.mixes_batch
    is_contiguous = x.is_contiguous()
    is_aligned = not x.data_ptr() & 15
    if not (is_contiguous or is_dense(x)):  # a copy will be made
        is_contiguous, is_aligned = becomes_contiguous(x), True
    map = x.shape, x.dtype, x.device, is_contiguous, is_aligned
    dtype = getattr(tensors[0], "dtype", torch.float32)  # a missing tensor raises later
    return _plan(network, num_groups, map, dtype, uses_batch, activation)


@functools.lru_cache(maxsize=4096, typed=True)  # named tuples of two classes may be equal
def _plan(
    network: Network, num_groups: int, map: tuple, dtype: torch.dtype, *options: Any
) -> "LayerPlan | None":
    if find_sizes(network, map[0][1], num_groups) is None:
        return None
    return LayerPlan(network, num_groups, Map(*map), dtype, *options)


def forget() -> None:
    """Clear the cache of plans, for tests that change the constants of this folder."""
    _plan.cache_clear()


class LayerPlan(plans.LayerPlan):
    """The passes of a layer for maps of one kind.

    Kernels find what they share by its place among values in float32:

    statistics
        copies of the network's buffers, and behind BN's moments of the batch the number of values
        that a channel has there (``kept``); mean and var (N, G'); scale and shift (N, C), if an
        activation's gradient needs them
    work, forward
        scale and shift (N, C), if the statistics have none; mean and var (N, C, splits)
    work, backward
        two sums (N, C, splits); scale (N, C), slope and offset (N, G') of dx; the gradients of each
        instance (N, ``gradients``); the sums of such rows over groups of instances

    For a map that is read once, the backward work has only the last two.
    """

    def __init__(
        self,
        network: Network,
        num_groups: int,
        map: Map,
        dtype: torch.dtype,
        uses_batch: bool,
        activation: Activation | None,
    ) -> None:
        index = -1 if map.device.index is None else map.device.index
        super().__init__(network, num_groups, map.shape[1], dtype, index, 16, map.is_contiguous)
        self.map, self.uses_batch = map, uses_batch
        self.activation = activation
        self.statistics_dtype = torch.float32
        sizes = find_sizes(network, map.shape[1], num_groups)
        assert sizes is not None
        self.of_network = sizes
        self.n = map.shape[0]
        self.moments = self.n * num_groups
        self.shape = one_read.shape_for(map, sizes)
        self.keeps, size = activation is not None, self.n * map.shape[1]
        #: Where scale and shift begin in the tensor that has them.
        first = sizes.kept + 2 * self.moments if self.keeps else 0
        self.coefficients_at = first, first + size
        self.num_statistics = sizes.kept + 2 * (self.moments + self.keeps * size)
        self.pointers = pointers_to(network)
        self.rescale = rescale_of(network)
        first = sizes.at.running_mean if uses_batch else 0
        #: Where the statistics have the batch's means, variances, and number of values.
        self.of_batch = slice(first, first + 2 * map.shape[1] + 1)
        #: Weight of the newest batch in running statistics.
        self.momentum = float(getattr(network, "momentum", 0.0))
        self.no_buffers = (None,) * len(sizes.buffers)
        #: Values of one channel group.
        self.count = float(map.shape[1:].numel() // num_groups)
        if self.shape is not None:
            self.plan_one_read(self.shape)
        else:
            self.plan_streaming()
        #: How dy and x are off multiples of 16 bytes, and which gradients are needed -> launches.
        self.backward_plans: dict[tuple[int, ...], _Backward] = {}

    # ---- forward

    def plan_one_read(self, shape: streaming.Shape) -> None:
        instance = self.map.shape[1:].numel()
        chunks = instance // (shape.block_c * shape.vector)
        self.options = {"num_warps": min(16, max(4, shape.block_c * shape.block_l // 512))}
        if self.activation is not None:  # else ptxas spills some registers to fit more programs
            self.options["maxnreg"] = 128
        constants = self.rescale.function, self.of_network, self.activation, self.keeps
        arguments = self.moments, self.count, chunks, shape, *constants
        self.launch = Launch(one_read.one_read_kernel, self.n, arguments, **self.options)

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
        first = mean_at, self.moments * run, self.of_batch.start, self.momentum
        plan_moments = functools.partial(
            Launch,
            streaming._moments_kernel,
            n * tiling.blocks * tiling.splits,
            (*first, *tiling.extent, tiling.splits, tiling.split_tiles, tiling.shape),
            num_warps=tiling.warps,
            maxnreg=80,
        )
        #: Which running statistics are updated -> launch.
        self.launches_of_moments: dict[tuple, Launch] = defaultdict(plan_moments)
        #: The number of processes, and which running statistics are updated -> launch.
        self.launches_of_pooling: dict[tuple, Launch] = {}
        block = pooled_at_once(run, self.num_groups) if run > 1 else 0
        pooling = run, tiling.splits, tiling.split, tiling.length, self.count
        constants = self.rescale.function, sizes, block, self.keeps
        self.launch_rescale = Launch(
            rescaling.rescale_kernel,
            n,
            (self.moments, *pooling, *constants),
            **self.rescale.options(sizes),
        )
        extent = *tiling.extent, c // self.num_groups
        self.launch_affine = Launch(
            streaming._affine_kernel,
            n * tiling.blocks * tiling.tiles,
            (sizes.kept, *self.coefficients_at, *extent, tiling.shape, self.activation),
            num_warps=tiling.warps,
        )

    def forward(self, x: Tensor, tensors: Tensors, running: Tensors) -> tuple[Tensor, Tensor]:
        if self.runs_elsewhere():
            with torch.cuda.device(x.device):
                return self.forward(x, tensors, running)
        y = torch.empty_like(x)
        statistics = torch.empty(self.num_statistics, dtype=torch.float32, device=x.device)
        pointers, stream = self.pointers(*tensors, statistics), current_stream(self.index)
        if self.shape is not None:
            self.launch(stream, x, y, statistics, pointers)
            return y, statistics
        counts = batch = None
        work = statistics.new_empty(self.num_work) if self.num_work else statistics
        if self.uses_batch:
            counts = counters(self.index, stream)
            batch = Batch(statistics, *running, *(None,) * (3 - len(running)))
        moments = work if self.is_pooled else statistics
        kind = len(running), running[2].dtype if len(running) > 2 else None
        if self.processes is None:
            self.launches_of_moments[kind](stream, x, moments, counts, batch)
        else:  # the running statistics follow the batch of all processes
            alone = Batch(statistics, None, None, None)
            self.launches_of_moments[0, None](stream, x, moments, counts, alone)
            batches = self.processes.gather(statistics[self.of_batch])
            self.launch_of_pooling(len(batches), kind)(stream, batches, batch)
        self.launch_rescale(stream, statistics, work, pointers)
        coefficients = statistics if self.keeps else work
        self.launch_affine(stream, x, y, statistics, coefficients, coefficients)
        if running:
            increment_version(running)
        return y, statistics

    def launch_of_pooling(self, processes: int, kind: tuple) -> Launch:
        """Return the launch that pools the batches of processes."""
        found = self.launches_of_pooling.get((processes, kind))
        if found is None:
            channels, block = self.map.shape[1], padded(processes)
            block_c = min(padded(channels), max(1, streaming.BATCH_TILE.value // block))
            found = self.launches_of_pooling[processes, kind] = Launch(
                streaming.pool_batches_kernel,
                divide_up(channels, block_c),
                (self.of_batch.start, self.momentum, channels, processes, block_c, block),
            )
        return found

    # ---- backward

    def backward(
        self, dy: Tensor, x: Tensor, statistics: Tensor, parameters: Tensors, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of x and of each parameter; None for x if ``needs`` is false."""
        if self.runs_elsewhere():
            with torch.cuda.device(x.device):
                return self.backward(dy, x, statistics, parameters, needs)
        # None and alignment select another compiled kernel.
        kind = dy.data_ptr() & 15, x.data_ptr() & 15, self.processes is not None, *needs
        plan = self.backward_plans.get(kind)
        if plan is None:
            plan = _Backward(self, not any(kind[:2]), any(needs[1:]), all(needs))
            self.backward_plans[kind] = plan
        pointers = self.pointers(*parameters, *self.no_buffers, statistics)
        stream = current_stream(self.index)
        work = statistics.new_empty(plan.num_work)
        if plan.needs_all:
            d_x, *gradients = map(torch.empty_like, (x, *parameters))
        else:
            d_x, *gradients = [
                torch.empty_like(t) if need else None
                for t, need in zip((x, *parameters), needs, strict=True)
            ]
        counts = counters(self.index, stream) if plan.counts else None
        if self.shape is not None:
            plan.launch(stream, dy, x, d_x, statistics, work, counts, pointers, (*gradients,))
        else:
            plan.launch_sums(stream, dy, x, statistics, work)
            plan.launch_vjp(stream, statistics, work, counts, pointers)
            if self.processes is not None:
                self.processes.add_up(work[plan.shared_sums])
            launch_dx = plan.launch_gradients if d_x is None else plan.launch_dx
            scale = statistics if self.keeps else work
            values = statistics, scale, work, work, statistics, work, (*gradients,)
            launch_dx(stream, dy, x, d_x, *values)
        return [d_x, *gradients]

    # ---- both

    def runs_elsewhere(self) -> bool:
        """Return whether another GPU than the maps' is the current one."""
        return self.index >= 0 and torch.cuda.current_device() != self.index

    def for_copies(self) -> "LayerPlan":
        if self.dtype is torch.float32:
            return self
        options = self.uses_batch, self.activation
        plan = _plan(self.network, self.num_groups, self.map, torch.float32, *options)
        assert plan is not None
        return plan if self.processes is None else plan.over(self.processes)

    def over(self, processes: Processes) -> "LayerPlan":
        plan = object.__new__(LayerPlan)
        plan.__dict__.update(self.__dict__, processes=processes)
        return plan

    def buffers(self, statistics: Tensor) -> list[Tensor]:
        """Return the network's buffers, as vectors, at the time of the forward pass."""
        return [statistics[at : at + size] for _, at, size in self.of_network.buffers]


class _Backward:
    """The launches of a plan's backward pass.

    ``adds`` tells whether a parameter needs a gradient, ``needs_all`` whether x and all do.
    """

    def __init__(self, plan: LayerPlan, is_aligned: bool, adds: bool, needs_all: bool) -> None:
        self.needs_all = needs_all
        map = plan.map._replace(is_aligned=is_aligned)
        n, c = map.shape[:2]
        sizes, moments = plan.of_network, plan.moments
        rows = n * sizes.gradients
        members = max(MEMBERS, divide_up(n, GROUPS))
        groups = divide_up(n, members)
        if plan.shape is not None:
            self.num_work, self.counts = rows + groups * sizes.gradients, True
            shape = one_read.shape_for(map, sizes) or plan.shape
            chunks = map.shape[1:].numel() // (shape.block_c * shape.vector)
            kernel, activation = one_read.one_read_vjp_kernel, []
            if plan.keeps:
                kernel, activation = one_read.one_read_activation_vjp_kernel, [plan.activation]
                shape, chunks = one_read.shape_of_rows(map), map.shape[2:].numel()
            arguments = (
                *(moments, members, plan.count, chunks, shape, plan.rescale.function, sizes),
                *(sizes.parameters, *activation),
            )
            self.launch = Launch(kernel, n, arguments, **plan.options)
            return
        tiling = streaming.Tiling.for_map(map)
        sums = 2 * n * c * tiling.splits
        slope_at = sums + n * c
        rows_at = slope_at + 2 * moments
        self.num_work = rows_at + rows
        # Gradients of BN's moments: one row per instance; with many instances, one per group; one
        # row if several processes add them up.
        is_shared = plan.processes is not None
        self.counts = plan.uses_batch and (n > GROUPS or is_shared)
        batch_at, step, batch_rows = rows_at + sizes.gradients - 2 * c, sizes.gradients, n
        if self.counts:
            members = n if is_shared else divide_up(n, GROUPS)
            batch_at, step, batch_rows = self.num_work, 2 * c, divide_up(n, members)
            self.num_work += batch_rows * 2 * c
        #: Where the work has the sums that processes add up.
        self.shared_sums = slice(batch_at, self.num_work)
        scale_at, shift_at = plan.coefficients_at if plan.keeps else (None, None)
        self.launch_sums = Launch(
            streaming._sums_kernel,
            n * tiling.blocks * tiling.splits,
            (
                *(sizes.kept, scale_at, shift_at, sums // 2, *tiling.extent, c // plan.num_groups),
                *(tiling.splits, tiling.split_tiles, tiling.shape, plan.activation),
            ),
            num_warps=tiling.warps,
            maxnreg=128,
        )
        block = pooled_at_once(tiling.splits, c) if tiling.splits > 1 else 0
        constants = plan.rescale.function, sizes, block
        places = sums // 2, sums, slope_at, slope_at + moments, rows_at, rows_at + rows
        self.launch_vjp = Launch(
            rescaling.rescale_vjp_kernel,
            n,
            (moments, *places, tiling.splits, members, plan.count, *constants),
            **plan.rescale.options(sizes),
        )
        scale_at = scale_at if plan.keeps else sums
        of_dx = sizes.kept, scale_at, shift_at, plan.of_batch.start, slope_at, slope_at + moments
        # The first programs of dx add the columns of the gradients of parameters.
        last_at, last_size, _ = sizes.parameters[-1]
        adding = divide_up(last_at + last_size, COLUMNS.value) if adds else 0
        extent = *tiling.extent, c // plan.num_groups
        batch = padded(batch_rows) if plan.uses_batch else 0
        arguments_of_dx = (
            *(*of_dx, batch_at, rows_at, step, batch_rows, sizes.gradients, n, adding),
            *(*extent, tiling.shape, batch, sizes.parameters if adds else (), plan.activation),
        )
        tiles = n * tiling.blocks * tiling.tiles
        options = {"num_warps": tiling.warps}
        if plan.keeps:  # else ptxas spills some registers to fit a fourth program
            options["maxnreg"] = 80
        self.launch_dx = Launch(streaming._dx_kernel, adding + tiles, arguments_of_dx, **options)
        self.launch_gradients = Launch(streaming._dx_kernel, adding, arguments_of_dx, **options)


def pooled_at_once(run: int, rows: int) -> int:
    """Return how many values of each of ``rows`` runs a program pools at once."""
    return max(1, min(padded(run), POOLED // padded(rows)))
