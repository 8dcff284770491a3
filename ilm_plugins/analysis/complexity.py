"""Count parameters, and floating point operations by fvcore's rules: a multiply-add is one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers.autoencoder import AutoencoderNorm
from ..layers.base import AdaptiveNorm
from ..layers.exemplar import ExemplarNorm
from .collect import evaluating

#: fvcore's count for an element of a GroupNorm: moments, standardization and affine map.
PER_ELEMENT = 5


def parameters(model: nn.Module) -> int:
    """Count a model's parameters, trainable or not."""
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, *inputs: Tensor) -> int:
    """Count the operations of a forward pass in evaluation mode.

    fvcore counts convolutions, matrix products, poolings and norms, and no other element-wise
    operations. This package's layers, which it would leave out, are counted here: five operations
    an element as for a GroupNorm (a BatchNorm, with known statistics in evaluation, has two), and
    the multiply-adds of their network (:func:`network_flops`).

    Args:
        model: any module; its mode is restored.
        inputs: an example batch, such as a (1, 3, 224, 224) image.

    Raises:
        ImportError: fvcore is not installed.
    """
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError as error:
        raise ImportError("fvcore is not installed; pip install fvcore to count FLOPs") from error

    with evaluating(model), torch.no_grad():
        # First: fvcore leaves its hooks in a model whose forward raises.
        own = _flops_of_layers(model, inputs)
        analysis = FlopCountAnalysis(model, inputs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return analysis.total() + own


def _flops_of_layers(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Count the operations of this package's layers in a forward pass."""
    found = []

    def count(layer: AdaptiveNorm, args: Sequence[Tensor], output: Tensor) -> None:
        found.append(PER_ELEMENT * output.numel() + len(output) * network_flops(layer))

    layers = [m for m in model.modules() if isinstance(m, AdaptiveNorm)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(found)


def network_flops(layer: AdaptiveNorm) -> int:
    """Count the multiply-adds from the moments of one instance to its scale and shift.

    ILM Norm and AssocNorm: the encoder twice and both decoders, 4MN. EN: K*C for the convolution,
    K*K*C/r for the correlation, the two linear maps. SN: none.
    """
    if isinstance(layer, AutoencoderNorm):
        maps = layer.encode, layer.encode, layer.decode_mean, layer.decode_var
    elif isinstance(layer, ExemplarNorm):
        maps = layer.expand, layer.ratio
    else:
        return 0
    total = sum(m.weight.numel() for m in maps)
    if isinstance(layer, ExemplarNorm) and layer.ratio_net != "mlp":
        k, c = len(layer.normalizers), layer.num_channels
        convolved = layer.ratio_net == "conv"
        total += k * c * convolved + k * k * (c // layer.reduction if convolved else c)
    return total
