"""The networks that kernels compute by themselves, and what a module of kernels offers."""

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

    def sizes(self, channels: int) -> tuple[int, ...]:
        """How many values each tensor has."""
        matrix = self.hidden * self.num_key_groups
        return channels, channels, matrix, matrix, matrix, 1

    @property
    def num_parameters(self) -> int:
        """How many of its tensors kernels give gradients of; buffers follow."""
        return 5


class Exemplar(NamedTuple):
    """The ``rescale`` of EN, see layers/exemplar.py.

    Its tensors are weight, bias, the weight of ``reduce`` or None, weight and bias of ``expand``
    and of ``ratio``; then BN's running mean and variance, or None for those of the batch.
    """

    normalizers: tuple[str, ...]
    num_groups: int  #: of "GN"
    eps: float
    hidden: int  #: values between the two linear maps
    reduction: int
    activation: str
    ratio_net: str
    shared_affine: bool

    def sizes(self, channels: int) -> tuple[int, ...]:
        """How many values each tensor has, unless it is None."""
        k, hidden = len(self.normalizers), self.hidden
        affine = channels if self.shared_affine else k * channels
        features = channels if self.ratio_net == "mlp" else k * k
        linear = hidden * features, hidden, k * hidden, k
        return affine, affine, channels, *linear, channels, channels

    @property
    def num_parameters(self) -> int:
        """How many of its tensors kernels give gradients of; buffers follow."""
        return 7


class Switch(NamedTuple):
    """The ``rescale`` of SN, see layers/switchable.py.

    Its tensors are weight, bias, ``mean_weight``, ``var_weight``; then BN's running mean and
    variance, or None for those of the batch.
    """

    normalizers: tuple[str, ...]
    num_groups: int  #: of "GN"
    eps: float

    def sizes(self, channels: int) -> tuple[int, ...]:
        """How many values each tensor has, unless it is None."""
        k = len(self.normalizers)
        return channels, channels, k, k, channels, channels

    @property
    def num_parameters(self) -> int:
        """How many of its tensors kernels give gradients of; buffers follow."""
        return 4


Network = Autoencoder | Exemplar | Switch


def check_tensors(x: Tensor, network: Network, tensors: tuple[Tensor | None, ...]) -> None:
    """Raise RuntimeError where a tensor is on another device than x, or of another size."""
    sizes = network.sizes(x.shape[1])
    for tensor, size in zip(tensors, sizes, strict=True):
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(
                f"got an input on {x.device} and a parameter on {tensor.device}; "
                "move both to the same device"
            )
        if tensor is not None and tensor.numel() != size:
            raise RuntimeError(
                f"got a parameter of shape {tuple(tensor.shape)}, expected {size} values; "
                "leave the shapes of a layer's parameters as they are"
            )


class Kernels(Protocol):
    """A backend's passes over x (N, C, *), which is not empty, with G' groups of channels.

    Statistics are at least float32; maps have the dtype and the memory layout of x. dy may have any
    layout.
    """

    def moments(self, x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
        """Means and biased variances, (N, G') both."""

    def affine(self, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """scale * (x - mean) + shift, with mean (N, G'), scale and shift (N, C)."""

    def sums(self, dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The sums over the map of dy * (x - mean) and of dy, (N, C) both."""

    def dx(
        self, dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor
    ) -> Tensor:
        """scale * dy + slope * (x - mean) + offset, with scale (N, C), the others (N, G')."""

    def runs(self, network: Network, x: Tensor, num_groups: int) -> bool:
        """Whether the next two compute this network."""

    def forward(
        self, x: Tensor, num_groups: int, network: Network, tensors: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The normalized x, and its moments."""

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        network: Network,
        tensors: tuple[Tensor | None, ...],
        needs_x: bool,
        needs: tuple[bool, ...],
    ) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
        """dx, and the gradients of the network's tensors, of which ``needs`` tells the wanted ones.

        Args:
            x, mean, var: what went into and came out of ``forward``.
            needs_x: whether dx is wanted; otherwise it may be None.
        """
