"""Remarks on what a conversion loses: rules, each for one thing that a norm may have.

A rule gets the old and the new norm, and returns a remark for the report, or None.
"""

from typing import Any

from torch import nn

from ..foreign_norms import is_ignored_tensor
from ..layers.base import AdaptiveNorm
from ..layers.mixture import MixtureNorm
from .checks import has_hooks, modules_of
from .convert_norm import EPS
from .norms import key_of, kind_in_state, kind_of
from .norms_in_state_dict import LAYOUTS
from .rules import find_rule


def outputs(old: nn.Module, new: nn.Module) -> str | None:
    return find_rule(kind_of(old), type(new)).changes


def freezing(old: Any, new: nn.Module) -> str | None:
    text = "no longer frozen: training uses batch statistics and updates the running ones"
    return text if getattr(old, "frozen", False) and key_of(type(new)) == "BN" else None


def synchronization(old: Any, new: nn.Module) -> str | None:
    text = (
        "no longer synchronized: nn.SyncBatchNorm.convert_sync_batchnorm makes it use the batches "
        "of all processes again"
    )
    return text if getattr(old, "sync", False) and key_of(type(new)) == "BN" else None


def zero_eps(old: Any, new: nn.Module) -> str | None:
    text = f"eps=0 becomes {EPS:g}, and the weight is scaled to match"
    return text if getattr(old, "eps", None) == 0 else None


def tracking(old: Any, new: nn.Module) -> str | None:
    text = (
        "track_running_stats=False: momentum=0 keeps the running statistics as they are; set "
        "momentum to update them"
    )
    tracks = getattr(old, "track_running_stats", True)
    return text if isinstance(new, MixtureNorm) and not tracks else None


def training(old: nn.Module, new: nn.Module) -> str | None:
    text = "parameters fixed, as the norm's were; to train them: ilm_plugins.freeze(model, False)"
    is_trained = any(p.requires_grad for p in new.parameters())
    return text if isinstance(new, AdaptiveNorm) and not is_trained else None


def hooks(old: nn.Module, new: nn.Module) -> str | None:
    modules = modules_of(old)
    replaced = {p for module in modules for p in module.parameters(recurse=False)}
    of_parameters = (
        getattr(p, attribute, None)
        for p in replaced - {*new.parameters()}
        for attribute in ("_backward_hooks", "_post_accumulate_grad_hooks")
    )
    if any(of_parameters) or any(map(has_hooks, modules)):
        return "hooks of replaced modules and parameters do not run; register them again"
    return None


def extra_tensors(old: nn.Module, new: nn.Module) -> str | None:
    known = set[str]().union(*LAYOUTS.get(kind_in_state(old), ()))
    extra = [name for name in old.state_dict().keys() - known if not is_ignored_tensor(name)]
    if extra:
        names = ", ".join(sorted(extra))
        return f"{names} inside the norm is no tensor of its class, and is removed"
    return None


#: In the order in which a report has them.
LOSSES = (
    *(outputs, freezing, synchronization, zero_eps, tracking),
    *(training, hooks, extra_tensors),
)
