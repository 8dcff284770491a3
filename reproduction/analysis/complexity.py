"""Count parameters and FLOPs of a model; a multiply-add counts as one, as in fvcore."""

import torch
from torch import Tensor, nn

from ilm_plugins.layers import AdaptiveNorm, AttentiveNorm, AutoencoderNorm, ExemplarNorm
from ilm_plugins.surgery import evaluating, watching

#: FLOPs that fvcore counts for each element of a GroupNorm: moments, standardization, affine map.
PER_ELEMENT = 5


def parameters(model: nn.Module) -> int:
    """Return the number of a model's parameters, trainable or not."""
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, *inputs: Tensor) -> int:
    """Return the operations of a forward pass in evaluation mode; a multiply-add counts as one.

    fvcore alone leaves this package's layers out. They are added here: five operations for each
    element, as fvcore counts for a GroupNorm (for a BatchNorm in evaluation two), and the
    multiply-adds of the layer's small network. The count is for the whole batch of ``inputs``.
    """
    from fvcore.nn import FlopCountAnalysis

    layers = {name: m for name, m in model.named_modules() if isinstance(m, AdaptiveNorm)}
    operations = []

    def count(name: str, x: Tensor) -> None:
        operations.append(PER_ELEMENT * x.numel() + len(x) * network_operations(layers[name]))

    with evaluating(model), torch.no_grad():
        # This runs first, because fvcore leaves its hooks in a model whose forward raises.
        with watching(layers, count):
            model(*inputs)
        analysis = FlopCountAnalysis(model, inputs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return analysis.total() + sum(operations)


def network_operations(layer: AdaptiveNorm) -> int:
    """Return the multiply-adds of the linear maps in a layer's ``rescale``, for one instance."""
    from ..layers import MLPExemplarNorm, WithoutConvolutionExemplarNorm  # registers keys

    match layer:
        case AutoencoderNorm():
            # The encoder runs twice, either decoder once.
            return 4 * layer.hidden * layer.num_key_groups
        case AttentiveNorm():
            return 3 * layer.num_affine * layer.num_channels
        case MLPExemplarNorm():
            return layer.expand.weight.numel() + layer.ratio.weight.numel()
        case WithoutConvolutionExemplarNorm():
            maps = layer.expand.weight.numel() + layer.ratio.weight.numel()
            return maps + len(layer.normalizers) ** 2 * layer.num_channels
        case ExemplarNorm():
            maps = layer.expand.weight.numel() + layer.ratio.weight.numel()
            k, c = len(layer.normalizers), layer.num_channels
            return maps + k * c + k * k * (c // layer.reduction)
    return 0
