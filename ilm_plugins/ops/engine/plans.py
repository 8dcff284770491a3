"""Base class of the backends' plans; checks whether kernels can use tensors without a copy.

A plan computes a layer's forward and backward pass, network included, for maps of one shape, dtype,
layout and device; see engine/plain.py. It is made once and found by one look-up. It holds neither
tensors nor the layer, so layers of equal options share it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .activation import Activation
from .network import BATCH, Network, Tensors, check_tensors
from .shared_batch import Processes


class LayerPlan:
    """The checks of a plan, once for each call.

    Args:
        network: the description of the layer's network.
        num_groups: G', the number of fine groups of the map.
        channels: C.
        dtype: of the tensors that kernels take.
        index: the GPU of the maps; -1 is the CPU.
        alignment: tensors begin at multiples of this number of bytes, a power of two.
        is_contiguous: the layout of the maps; else channels last.
    """

    #: The dtype of the statistics, and their number.
    statistics_dtype: torch.dtype
    num_statistics: int
    #: What kernels apply after the affine map.
    activation: Activation | None = None
    #: The processes that share the batch, if there are several.
    processes: Processes | None = None

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
        self.dtype, self.index, self.alignment = dtype, index, alignment
        self.is_contiguous = is_contiguous
        #: Sizes of the tensors, and of BN's running statistics; and which may be None.
        sizes = network.sizes(channels)
        self.sizes = [*(sizes[name] for name in network.tensors), channels, channels]
        self.optional = [name in BATCH for name in (*network.tensors, *BATCH)]

    def __deepcopy__(self, memo: dict) -> "LayerPlan":
        return self

    def __reduce__(self) -> tuple:
        return type(None), ()  # unpickles as None; the next call makes a plan

    def takes(self, tensors: Tensors) -> bool:
        """Return whether kernels can read, and write to, all tensors as they are.

        Args:
            tensors: the network's, then BN's running mean and variance; the last may be missing.
        """
        dtype, index, unaligned = self.dtype, self.index, self.alignment - 1
        for t, size, is_optional in zip(tensors, self.sizes, self.optional, strict=False):
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

    def has_trained_buffers(self, tensors: Tensors) -> bool:
        buffers = tensors[self.network.num_parameters :]
        return any([t is not None and t.requires_grad for t in buffers])

    def adapted(self, tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
        """Return tensors that pass :meth:`takes`, copied where needed; gradients flow through."""
        return [t if t is None else self._adapted(t) for t in tensors]

    def _adapted(self, tensor: Tensor) -> Tensor:
        return self.aligned(tensor.resolve_neg().to(self.dtype).contiguous())

    def aligned(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.data_ptr() & (self.alignment - 1) else tensor

    def for_copies(self) -> "LayerPlan":
        """Return the plan for copies of tensors that this plan does not take."""
        return self

    def call_with_copies(
        self, function: Callable[..., Any], x: Tensor, tensors: Tensors, running: Tensors
    ) -> Any:
        """Return ``function(plan, tensors, running)`` of copies that kernels take.

        What the function writes to running statistics is copied back.

        Raises:
            RuntimeError: a tensor is missing, on another device than x, or of another size.
        """
        check_tensors(x, self.network, (*tensors, *running[:2]))
        plan = self.for_copies()
        updated = plan.adapted(running[:2])
        result = function(plan, plan.adapted(tensors), (*updated, *running[2:]))
        for new, old in zip(updated, running, strict=False):
            if old is not new:
                old.copy_(new)
        return result

    def over(self, processes: Processes) -> "LayerPlan | None":
        """Return the plan for a batch of these processes; None if kernels cannot wait for them."""
        return None

    def forward(self, x: Tensor, tensors: Tensors, running: Tensors) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def backward(
        self, dy: Tensor, x: Tensor, statistics: Tensor, parameters: Tensors, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        raise NotImplementedError

    def buffers(self, statistics: Tensor) -> list[Tensor]:
        raise NotImplementedError
