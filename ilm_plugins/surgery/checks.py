"""Reasons not to touch a norm: something beside its class says what it computes, or holds it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, jit, nn
from torch.nn.utils import parametrize

from ..foreign_norms import SHARED_HEADS, path_of
from ..layers import NORMS
from ..layers.mixture import MixtureNorm
from .norms import modules_after
from .rules import refuse

_COMPUTED = (
    "its tensors are computed, by pruning or a parametrization: first call "
    "torch.nn.utils.prune.remove or parametrize.remove_parametrizations"
)
_FLATTENED = "FSDP keeps its tensors elsewhere: convert the model before you wrap it"
_REPLACED = "its forward method is replaced, for example by a hook of accelerate: remove that first"
_SCRIPTED = "torch.jit.script or trace has compiled it: convert the model before that"
#: The tensors of plain norms.
TENSORS = "weight", "bias", "running_mean", "running_var"


def check_plain_modules(norm: nn.Module) -> None:
    """Raise NotConvertible if something else than its class says what a norm computes."""
    for module in modules_of(norm):
        refuse(isinstance(module, jit.ScriptModule), _SCRIPTED)
        refuse(_is_computed(module), _COMPUTED)
        refuse(any(isinstance(vars(module).get(name), Tensor) for name in TENSORS), _FLATTENED)
        refuse("forward" in vars(module), _REPLACED)


def modules_of(norm: nn.Module) -> list[nn.Module]:
    """Return a norm and the modules in it, without those that a norm of timm runs afterwards."""
    after = {module for part in modules_after(norm) for module in part.modules()}
    return [module for module in norm.modules() if module not in after]


def _is_computed(module: nn.Module) -> bool:
    # Hooks of pruning and weight_norm keep a parameter under one of these names, and write the
    # tensor that they compute from it to an attribute.
    kept = {f"{name}_{end}" for name in vars(module) for end in ("orig", "g")}
    return bool(kept & module._parameters.keys()) or parametrize.is_parametrized(module)


def holders_of(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Return module -> the (owner, attribute) pairs outside the submodules that refer to it."""
    holders = defaultdict(list)
    for module in model.modules():
        for attribute, value in vars(module).items():
            if attribute != "_modules":
                for held in _modules_in(value, set()):
                    holders[held].append((module, attribute))
    return holders


def _modules_in(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    """Yield the modules that a value is, contains, or binds as a method or partial function."""
    if isinstance(value, nn.Module):
        yield value
        return
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = [*value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif isinstance(value, MethodType):
        parts = (value.__self__,)
    elif isinstance(value, partial):
        parts = (value.func, *value.args, *value.keywords.values())
    if parts and id(value) not in seen:  # a collection may be inside itself
        seen.add(id(value))
        for part in parts:
            yield from _modules_in(part, seen)


def check_not_held(
    old: nn.Module, holders: Mapping[nn.Module, list[tuple[nn.Module, str]]]
) -> None:
    """Raise NotConvertible if an attribute of a module outside a norm would keep the norm."""
    inside = {*old.modules()}
    for module, attribute in holders.get(old, ()):
        name = f"{type(module).__name__}.{attribute}"
        reason = f"{name} also refers to the norm: remove this reference, then convert the model"
        refuse(module not in inside, reason)


def reason_of_levels() -> str:
    """Return why a head whose levels share each norm can't have a norm with running statistics."""
    able = ", ".join(key for key, layer in NORMS.items() if not issubclass(layer, MixtureNorm))
    return (
        "the levels of a pyramid share this head, and EN, SN and SSN would need running statistics "
        f"for each: build it with one of {able}"
    )


def modules_of_shared_heads(model: nn.Module) -> set[nn.Module]:
    """Return the modules in heads that run each of their norms over all levels of a pyramid."""
    heads = (m for m in model.modules() if SHARED_HEADS.intersection(map(path_of, type(m).__mro__)))
    return {module for head in heads for module in head.modules()}


def names_in(code: CodeType) -> set[str]:
    """Return the attributes and global names in a function's code, and in functions within."""
    inner = [names_in(value) for value in code.co_consts if isinstance(value, CodeType)]
    return {*code.co_names}.union(*inner)


def check_not_read(around: nn.Module, attribute: str) -> None:
    """Raise NotConvertible if the forward of a module reads BatchNorm's statistics of its norm.

    It may do so in methods that it calls, as torch's ConvBn for quantization-aware training.
    """
    cls, names, known = type(around), {"forward"}, set[str]()
    while names:
        name = names.pop()
        known.add(name)
        method = getattr(cls, name, None)
        used = names_in(method.__code__) if isinstance(method, FunctionType) else set()
        is_read = attribute in used and not used.isdisjoint(("running_mean", "running_var"))
        refuse(is_read, f"{cls.__name__}.{name} reads its running statistics, which layers lack")
        names |= used - known


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks of its forward or backward pass."""
    names = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return any(getattr(module, name) for name in names)
