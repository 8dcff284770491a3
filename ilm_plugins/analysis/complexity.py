"""Parameters, and floating point operations as fvcore counts them: a multiply-add is one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers.autoencoder import AutoencoderNorm
from ..layers.base import AdaptiveNorm
from ..layers.exemplar import ExemplarNorm
from .collect import evaluating

#: What fvcore counts for each element of a GroupNorm: its moments, standardization and affine map.
PER_ELEMENT = 5


def parameters(model: nn.Module) -> int:
    """The number of a model's parameters, trained or not."""
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, *inputs: Tensor) -> int:
    """The operations of a forward pass in evaluation mode.

    fvcore's counter follows convolutions, matrix products, poolings and norms and leaves out other
    element-wise operations. To it this package's layers are element-wise operations alone: they are
    counted as their description says, five an element as for a GroupNorm (BatchNorm, whose
    statistics are known in evaluation, has two) and the multiply-adds of their network
    (:func:`network_flops`).

    Args:
        model: any module; its mode is left as it is found.
        inputs: an example batch, such as a (1, 3, 224, 224) image.

    Raises:
        ImportError: fvcore is not installed.
    """
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError as error:
        raise ImportError("fvcore is not installed; pip install fvcore to count FLOPs") from error

    with evaluating(model), torch.no_grad():
        # First, for fvcore leaves its hooks in a model that fails.
        own = _flops_of_layers(model, inputs)
        analysis = FlopCountAnalysis(model, inputs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return analysis.total() + own


def _flops_of_layers(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Those of this package's layers in a forward pass."""
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
    """The multiply-adds of each instance's way from the moments to scale and shift.

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
