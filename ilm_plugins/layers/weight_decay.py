"""Parameter groups in which the norms of a model have their own weight decay."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .registry import NORMS

#: torch's norms, and the classes from which other packages derive theirs.
NORM_CLASSES = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, _NormBase)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    norm_weight_decay: float = 0.0,
    bias_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return a model's trainable parameters as an optimizer's groups, with the norms' own decay.

    A norm's own parameters are ``weight`` and ``bias``, and SN's and SSN's logits. The networks
    inside this package's layers get the ordinary weight decay, as in detectron2 and MMEngine.

    Args:
        model: any module. Norms are found by their class: this package's, registered ones, and
            BatchNorm, InstanceNorm, GroupNorm, LayerNorm and RMSNorm of torch with subclasses.
        weight_decay: the decay of all other parameters.
        norm_weight_decay: the decay of the norms' own parameters.
        bias_weight_decay: the decay of biases and of parameters with fewer than two dimensions
            outside norms, which timm and transformers exclude; None means ``weight_decay``.

    Returns:
        Up to three dicts of "params" and "weight_decay", in the order of ``model.parameters()``
        within each. A parameter that several modules share is in one group.
    """
    classes = (*NORM_CLASSES, *NORMS.values())
    of_norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, classes)
        for parameter in module.parameters(recurse=False)
    }
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": decay}
        for decay in (weight_decay, norm_weight_decay, bias_weight_decay)
    ]
    others, norms, biases = groups
    for name, parameter in model.named_parameters():
        is_bias = parameter.dim() < 2 or name.rpartition(".")[2] == "bias"
        group = biases if is_bias and bias_weight_decay is not None else others
        if parameter.requires_grad:
            (norms if id(parameter) in of_norms else group)["params"].append(parameter)
    return [group for group in groups if group["params"]]
