"""What a module of kernels offers the primitive, and the networks that it may run by itself."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Autoencoder(NamedTuple):
    """The ``rescale`` of ILM Norm and AssocNorm, see layers/autoencoder.py.

    Its tensors are weight, bias (C), encode (M, key groups), decode_mean, decode_var
    (key groups, M) and omega_offset (a scalar), in this order.
    """

    num_groups: int  #: of the standardization
    num_key_groups: int
    hidden: int  #: M
    eps: float
    mean_drives: str  #: "beta" or "omega"; the variance drives the other
    activations: tuple[str, str]  #: for (mean, variance)
    combine: str  #: of AssocNorm's Table 5; "a(WE)+B" is ILM Norm's


class Mixture(NamedTuple):
    """The ``rescale`` of EN or SN, see layers/exemplar.py and layers/switchable.py.

    Its tensors are weight and bias; of EN the weights of ``reduce``, None without it, then weight
    and bias of ``expand`` and of ``ratio``; of SN ``mean_weight`` and ``var_weight``; and BN's
    running mean and variance, or Nones for those of the batch.
    """

    kind: str  #: "exemplar" or "switch"
    normalizers: tuple[str, ...]
    eps: float
    # of EN alone:
    reduction: int = 1
    expansion: int = 1
    activation: str = "tanh"
    ratio_net: str = "conv"
    shared_affine: bool = True


Network = Autoencoder | Mixture


class Kernels(Protocol):
    """The primitive's passes over x (N, C, *), which is not empty, with G' groups of channels.

    What a pass returns is at least float32, but for maps, which have the dtype and the layout of x.
    """

    def forward(
        self,
        x: Tensor,
        num_groups: int,
        eps: float,
        rescale: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y (N, C, *), and the moments, (N, G') both.

        Args:
            eps: added to the variance for the standardization.
            rescale: (N, G') moments to (N, C) scale and shift of the standardized x.
        """

    def sums(self, dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        """The sums over the map of dy * (x - mean) * rstd and of dy, (N, C) both.

        Args:
            dy: (N, C, *), in any layout.
            mean, rstd: (N, G').
        """

    def dx(
        self, dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor
    ) -> Tensor:
        """scale * dy + slope * (x - mean) + offset, (N, C, *).

        Args:
            dy: (N, C, *), in any layout.
            mean, slope, offset: (N, G').
            scale: (N, C).
        """

    def runnable(
        self, network: Callable[[], Network] | None, x: Tensor, num_groups: int
    ) -> Network | None:
        """The network if there is one that the kernels compute themselves."""

    def network_forward(
        self, x: Tensor, num_groups: int, network: Network, tensors: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``forward`` with a network that is runnable, and its tensors, of any dtype."""

    def network_backward(
        self,
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        network: Network,
        tensors: tuple[Tensor | None, ...],
        needs_x: bool,
    ) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
        """dx (N, C, *), and the gradients of the network's tensors, None for what has none.

        Args:
            dy: (N, C, *), in any layout, the gradient of y.
            x, mean, var: what went into and came out of ``network_forward``.
            needs_x: whether dx is wanted; otherwise it is None.
        """
