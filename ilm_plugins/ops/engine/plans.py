"""Base classes of plans; checks whether kernels can use tensors without a copy.

A plan computes a layer's forward and backward pass for maps of one shape, dtype, layout and device.
Either kernels compute the network, too, or torch does between kernels over the map, by the plan in
engine/torch_plan.py.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from .network import BATCH, Needs, Network, Tensors, check_tensors
from .reference import Equation
from .shared_batch import Processes


class Plan:
    """The passes over maps of one kind. It is made once and found by one look-up.

    It holds neither tensors nor the layer, so layers of equal options share it.
    """

    num_groups: int
    #: How many of the tensors, the first ones, have gradients.
    num_parameters: int
    #: The layout of the maps; else channels last.
    is_contiguous: bool
    #: The dtype of the values that are saved for the backward pass, and their number.
    saved_dtype: torch.dtype
    num_saved: int
    #: The processes that share the batch, if kernels wait for them.
    processes: Processes | None = None

    def __deepcopy__(self, memo: dict) -> "Plan":
        return self

    def __reduce__(self) -> tuple:
        return type(None), ()  # unpickles as None; the next call makes a plan

    def prepared(
        self, x: Tensor, tensors: Tensors, running: tuple
    ) -> tuple["Plan", Tensors, tuple]:
        """Return a plan, with tensors and running statistics that it takes: copies where needed.

        After its forward pass, :func:`copy_back` updates running statistics that were copied.

        Raises:
            RuntimeError: a tensor is missing, on another device than x, or of another size.
        """
        return self, tensors, running

    def readable(self, x: Tensor, parameters: Tensors) -> Tensors:
        """Return the parameters, copied where the backward pass cannot read them."""
        return parameters

    def aligned(self, tensor: Tensor) -> Tensor:
        """Return a saved tensor as the backward pass reads it."""
        return tensor

    def inputs(self, tensors: Tensors) -> Tensors | None:
        """Return the tensors as the autograd function takes them; None if a buffer is trained.

        Kernels that compute the network have no gradients of buffers.
        """
        raise NotImplementedError

    def forward(
        self, x: Tensor, tensors: Tensors, running: tuple, equation: Equation
    ) -> tuple[Tensor, Tensor]:
        """Return y, after the activation, and the values saved for the backward pass, a vector.

        x is :func:`~.layouts.dense`, and :meth:`takes` is True for ``tensors``.
        """
        raise NotImplementedError

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        saved: Tensor,
        parameters: Tensors,
        needs: Needs,
        equation: Equation,
    ) -> list[Tensor | None]:
        """Return the gradients of x and of each parameter, None where ``needs`` is false."""
        raise NotImplementedError

    def buffers(self, saved: Tensor) -> list[Tensor]:
        """Return the network's buffers, as vectors, at the time of the forward pass.

        The last two of a mixture are BN's moments.
        """
        return []


class KernelPlan(Plan):
    """The plan of kernels that compute the network, too: its checks, once for each call.

    The maps have G' = ``num_groups`` fine groups and are on the GPU ``index``, or on the CPU (-1);
    tensors begin at multiples of ``alignment`` bytes, a power of two.
    """

    def __init__(
        self,
        network: Network,
        num_groups: int,
        channels: int,
        dtype: torch.dtype,
        index: int,
        alignment: int,
        is_contiguous: bool,
    ) -> None:
        self.network, self.num_groups = network, num_groups
        self.num_parameters = network.num_parameters
        self.dtype, self.index, self.alignment = dtype, index, alignment
        self.is_contiguous = is_contiguous
        #: Sizes of the tensors, and of BN's running statistics; and which may be None.
        sizes = network.sizes(channels)
        numbers = *(sizes[name] for name in network.tensors), channels, channels
        names = *network.tensors, *BATCH
        self.sizes = [(number, n in BATCH) for number, n in zip(numbers, names, strict=True)]

    def takes(self, tensors: Tensors) -> bool:
        """Return whether kernels can read, and write to, all tensors as they are."""
        dtype, index, unaligned = self.dtype, self.index, self.alignment - 1
        for t, (size, is_optional) in zip(tensors, self.sizes, strict=False):
            if t is None:
                if not is_optional:
                    return False
            elif (
                t.dtype is not dtype
                or t.numel() != size
                or t.get_device() != index
                or t.data_ptr() & unaligned
                or not t.is_contiguous()
                or t.is_neg()
            ):
                return False
        return True

    def inputs(self, tensors: Tensors) -> Tensors | None:
        buffers = tensors[self.num_parameters :]
        return None if any([t is not None and t.requires_grad for t in buffers]) else tensors

    def readable(self, x: Tensor, parameters: Tensors) -> Tensors:
        if self.takes(parameters):
            return parameters
        check_tensors(x, self.network, parameters)
        return self.adapted(parameters)

    def adapted(self, tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
        """Return tensors that pass :meth:`takes`, copied where needed; gradients flow through."""
        return [
            t if t is None else self.aligned(t.resolve_neg().to(self.dtype).contiguous())
            for t in tensors
        ]

    def aligned(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.data_ptr() & (self.alignment - 1) else tensor

    def for_copies(self) -> "KernelPlan":
        """Return the plan for copies of tensors that this plan does not take."""
        return self

    def prepared(self, x: Tensor, tensors: Tensors, running: tuple) -> tuple[Plan, Tensors, tuple]:
        if self.takes((*tensors, *running[:2]) if running else tensors):
            return self, tensors, running
        check_tensors(x, self.network, (*tensors, *running[:2]))
        plan = self.for_copies()
        return plan, plan.adapted(tensors), (*plan.adapted(running[:2]), *running[2:])

    def over(self, processes: Processes) -> "KernelPlan | None":
        """Return the plan for a batch of these processes; None if kernels cannot wait for them."""
        return None


def copy_back(updated: tuple, running: tuple) -> None:
    """Copy to running statistics what a forward pass has written to their copies."""
    for new, old in zip(updated[:2], running[:2], strict=True):
        if new is not old:
            old.copy_(new)
