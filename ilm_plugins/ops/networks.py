"""Descriptions of the layers' networks for kernels, and the interface of a backend.

A network is a layer's function ``rescale``, from moments to scale and shift.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

#: The activations that kernels compute, and the forms of AssocNorm's Table 5, in the order of their
#: numbers in cpu/kernels.h.
ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu", "relu6", "identity")
COMBINE = ("a(WE)", "a(WE+B)", "a(WE)*B", "a(WE)+B")

#: A network's tensors, in the order of its description; None for a tensor that it lacks.
Tensors = Sequence[Tensor | None]


class Autoencoder(NamedTuple):
    """The ``rescale`` of ILM Norm and AssocNorm, see layers/autoencoder.py.

    Its tensors are weight, bias (C), encode (M, key groups), decode_mean, decode_var
    (key groups, M) and omega_offset (a scalar), in this order.
    """

    num_groups: int  #: of the standardization
    num_key_groups: int
    hidden: int  #: M
    eps: float
    mean_drives: str  #: "beta" or "omega", what the mean predicts; the variance predicts the other
    activations: tuple[str, str]  #: for (mean, variance)
    combine: str  #: of AssocNorm's Table 5; "a(WE)+B" is ILM Norm's
    #: Number of leading tensors that are parameters and get gradients; buffers follow.
    num_parameters = 5

    def sizes(self, channels: int) -> tuple[int, ...]:
        """Return the number of elements of each tensor, given the number of channels."""
        matrix = self.hidden * self.num_key_groups
        return channels, channels, matrix, matrix, matrix, 1


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
    num_parameters = 7

    def sizes(self, channels: int) -> tuple[int, ...]:
        """Return the number of elements of each of the 9 tensors, given the number of channels C.

        Tensors that are None in a layer are counted, too.
        """
        k, hidden = len(self.normalizers), self.hidden
        affine = channels if self.shared_affine else k * channels
        features = channels if self.ratio_net == "mlp" else k * k
        linear = hidden * features, hidden, k * hidden, k
        return affine, affine, channels, *linear, channels, channels


class Switch(NamedTuple):
    """The ``rescale`` of SN, see layers/switchable.py.

    Its tensors are weight, bias, ``mean_weight``, ``var_weight``; then BN's running mean and
    variance, or None for those of the batch.
    """

    normalizers: tuple[str, ...]
    num_groups: int  #: of "GN"
    eps: float
    num_parameters = 4

    def sizes(self, channels: int) -> tuple[int, ...]:
        """Return the number of elements of each tensor, if it is not None."""
        k = len(self.normalizers)
        return channels, channels, k, k, channels, channels


class Attentive(NamedTuple):
    """The ``rescale`` of AN, see layers/attentive.py.

    Its tensors are weight, bias (C), the attention's weight (K, C) and bias (K), and the pairs'
    weight and bias (K, C).
    """

    num_groups: int  #: of the standardization
    eps: float
    num_affine: int  #: K
    feature_eps: float  #: added to the variance in the attention's features
    num_parameters = 6

    def sizes(self, channels: int) -> tuple[int, ...]:
        """Return the number of elements of each tensor, given the number of channels."""
        rows = self.num_affine * channels
        return channels, channels, rows, self.num_affine, rows, rows


Network = Autoencoder | Exemplar | Switch | Attentive


def check_groups(network: Network, channels: int, num_groups: int) -> None:
    """Raise RuntimeError unless a network can compute its groups' moments from those it gets.

    Args:
        network: the description.
        channels: C.
        num_groups: G', the number of groups whose moments the network gets.
    """
    groups = network.num_key_groups if isinstance(network, Autoencoder) else channels
    if num_groups % groups or num_groups % network.num_groups:
        raise RuntimeError(
            f"num_groups={network.num_groups} does not fit a layer made for moments of "
            f"{num_groups} groups of its {channels} channels; build a new layer instead of "
            "changing its options"
        )


def check_tensors(x: Tensor, network: Network, tensors: Tensors) -> None:
    """Raise RuntimeError if a network's tensor is not on x's device, or has the wrong size.

    Only the number of elements is compared, not the shape.

    Args:
        x: (N, C, *), the layer's input.
        network: the description, whose ``sizes`` are expected.
        tensors: in the order of the description; None is skipped.
    """
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
    """The interface of a backend: functions of a non-empty x (N, C, *) with G' groups of channels.

    x and dy may have any memory layout. Outputs of x's shape have the dtype and the layout of x;
    statistics are at least float32.
    """

    def moments(self, x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
        """Return means and biased variances of ``num_groups`` channel groups, (N, G') each."""

    def affine(self, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return scale * (x - mean) + shift, with mean (N, G'), scale and shift (N, C)."""

    def sums(self, dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over positions of dy * (x - mean) and of dy, (N, C) each."""

    def dx(
        self, dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor
    ) -> Tensor:
        """Return scale * dy + slope * (x - mean) + offset, (N, C, *).

        mean, slope and offset are (N, G'), scale is (N, C).
        """

    def runs(self, network: Network, x: Tensor, num_groups: int) -> bool:
        """Return whether ``forward`` and ``backward`` can compute this network for x."""

    def forward(
        self, x: Tensor, num_groups: int, network: Network, tensors: Tensors
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalized x (N, C, *), and its means and variances (N, G').

        Args:
            x: (N, C, *).
            num_groups: G'.
            network: the description of the function from moments to scale and shift.
            tensors: its tensors, in the order of the description; None for one that it lacks.
        """

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        network: Network,
        tensors: Tensors,
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of each of the network's tensors, in this order.

        Args:
            dy: gradient of the normalized x, of its shape.
            x, mean, var: the input of ``forward``, and the moments that it returned.
            network, tensors: as for ``forward``.
            needs: whether the gradient is needed, of x and of each tensor; if not, it may be None.
        """
