"""Descriptions of the layers' networks for kernels.

A network is a layer's function ``rescale``, from moments to scale and shift. ``tensors`` names the
tensors that it takes, of which the first ``num_parameters`` get gradients; buffers follow.
``sizes`` returns each tensor's number of elements for C channels, also where a layer has None;
``optional`` names the tensors that may be None. The options are separate named tuples, because
type checkers take all names in one for its fields.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

#: A network's tensors, in the order of its description; None for a tensor that it lacks.
Tensors = Sequence[Tensor | None]

#: Names of BN's running mean and variance, which are None where BN takes the batch's own moments.
BATCH = "batch_mean", "batch_var"


class _Autoencoder(NamedTuple):
    num_groups: int  #: of the standardization
    num_key_groups: int
    hidden: int  #: M
    eps: float
    mean_drives: str  #: "beta" or "omega", what the mean predicts; the variance predicts the other
    activations: tuple[str, str]  #: for (mean, variance)
    combine: str  #: of AssocNorm's Table 5; "a(WE)+B" is ILM Norm's


class Autoencoder(_Autoencoder):
    """The ``rescale`` of ILM Norm and AssocNorm with its ``tensors``, see layers/autoencoder.py."""

    __slots__ = ()
    tensors = "weight", "bias", "encode", "decode_mean", "decode_var", "omega_offset"
    num_parameters = 5
    optional: tuple[str, ...] = ()

    def sizes(self, channels: int) -> tuple[int, ...]:
        matrix = self.hidden * self.num_key_groups
        return channels, channels, matrix, matrix, matrix, 1


class _Exemplar(NamedTuple):
    normalizers: tuple[str, ...]
    num_groups: int  #: of "GN"
    eps: float
    hidden: int  #: values between the two linear maps
    reduction: int
    activation: str
    ratio_net: str
    shared_affine: bool
    momentum: float = 0.1  #: of the running statistics


class Exemplar(_Exemplar):
    """The ``rescale`` of EN with its ``tensors``, see layers/exemplar.py."""

    __slots__ = ()
    tensors = "weight", "bias", "reduce", "expand", "expand_bias", "ratio", "ratio_bias", *BATCH
    num_parameters = 7

    @property
    def mixes_batch(self) -> bool:
        return "BN" in self.normalizers

    @property
    def optional(self) -> tuple[str, ...]:
        return BATCH if self.ratio_net == "conv" else ("reduce", *BATCH)

    def sizes(self, channels: int) -> tuple[int, ...]:
        k, hidden = len(self.normalizers), self.hidden
        affine = channels if self.shared_affine else k * channels
        features = channels if self.ratio_net == "mlp" else k * k
        linear = hidden * features, hidden, k * hidden, k
        return affine, affine, channels, *linear, channels, channels


class _Switch(NamedTuple):
    normalizers: tuple[str, ...]
    num_groups: int  #: of "GN"
    eps: float
    momentum: float = 0.1  #: of the running statistics


class Switch(_Switch):
    """The ``rescale`` of SN with its ``tensors``, see layers/switchable.py."""

    __slots__ = ()
    tensors: tuple[str, ...] = "weight", "bias", "mean_weight", "var_weight", *BATCH
    num_parameters = 4
    optional: tuple[str, ...] = BATCH

    @property
    def mixes_batch(self) -> bool:
        return "BN" in self.normalizers

    def sizes(self, channels: int) -> tuple[int, ...]:
        k = len(self.normalizers)
        return channels, channels, k, k, channels, channels


class SparseSwitch(Switch):
    """The ``rescale`` of SSN with its ``tensors``, see layers/sparse.py."""

    __slots__ = ()
    tensors: tuple[str, ...] = *Switch.tensors[:4], "radius", "mean_fixed", "var_fixed", *BATCH

    def sizes(self, channels: int) -> tuple[int, ...]:
        parameters, k = super().sizes(channels)[:4], len(self.normalizers)
        return *parameters, 1, k, k, channels, channels


class _Attentive(NamedTuple):
    num_groups: int  #: of the standardization
    eps: float
    num_affine: int  #: K
    feature_eps: float  #: added to the variance in the attention's features


class Attentive(_Attentive):
    """The ``rescale`` of AN with its ``tensors``, see layers/attentive.py."""

    __slots__ = ()
    tensors = "weight", "bias", "attention", "attention_bias", "pair_weight", "pair_bias"
    num_parameters = 6
    optional: tuple[str, ...] = ()

    def sizes(self, channels: int) -> tuple[int, ...]:
        rows = self.num_affine * channels
        return channels, channels, rows, self.num_affine, rows, rows


Network = Autoencoder | Exemplar | Switch | SparseSwitch | Attentive


def with_none(values: Iterable, present: Sequence[bool]) -> list:
    """Return the values in the places that are present, and None in the others."""
    values = iter(values)
    return [next(values) if is_present else None for is_present in present]


def check_groups(network: Network, channels: int, num_groups: int) -> None:
    """Raise RuntimeError if the network's groups do not consist of ``num_groups`` fine ones."""
    if isinstance(network, Exemplar) and (network.reduction < 1 or channels % network.reduction):
        raise RuntimeError(
            f"reduction={network.reduction} does not fit {channels} channels; build a new layer "
            "instead of changing its options"
        )
    groups = network.num_key_groups if isinstance(network, Autoencoder) else channels
    if num_groups % groups or num_groups % network.num_groups:
        raise RuntimeError(
            f"num_groups={network.num_groups} does not fit a layer made for moments of "
            f"{num_groups} groups; build a new layer instead of changing its options"
        )


def check_tensors(x: Tensor, network: Network, tensors: Tensors) -> None:
    """Raise RuntimeError if a tensor is missing, on another device than x, or of another size.

    Args:
        tensors: the network's, then BN's running mean and variance; ends may be left out.
    """
    channels = x.shape[1]
    names, sizes = (*network.tensors, *BATCH), (*network.sizes(channels), channels, channels)
    for name, tensor, size in zip(names, tensors, sizes, strict=False):
        if tensor is None:
            if name not in network.optional:
                raise RuntimeError(
                    f"{name!r} of {type(network).__name__} is None, but kernels read it; give a "
                    "tensor"
                )
        elif tensor.numel() != size or tensor.device != x.device:
            raise RuntimeError(
                f"got a parameter of shape {tuple(tensor.shape)} on {tensor.device}, expected "
                f"{size} values on {x.device}"
            )
