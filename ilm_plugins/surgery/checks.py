"""Reasons not to touch a norm: something beside its class says what it computes, or holds it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..foreign_norms import SHARED_HEADS, path_of
from ..layers import NORMS
from ..layers.mixture import MixtureNorm
from .norms import kind_of, modules_after
from .rules import AFFINE, BN_RUNNING, Refused


def check_plain_modules(norm: nn.Module) -> None:
    """Raise Refused if something else than its class says what a norm computes."""
    for module in modules_of(norm):
        if _is_computed(module):
            raise Refused(
                "its tensors are computed, by pruning, a parametrization or FSDP: first call "
                "torch.nn.utils.prune.remove or parametrize.remove_parametrizations, or convert "
                "the model before you wrap it"
            )
        if "forward" in vars(module):
            raise Refused(
                "its forward method is replaced, for example by a hook of accelerate: remove that "
                "first"
            )


def modules_of(norm: nn.Module) -> list[nn.Module]:
    """Return a norm and the modules in it, without those that a norm of timm runs afterwards."""
    after = {module for part in modules_after(norm) for module in part.modules()}
    return [module for module in norm.modules() if module not in after]


def _is_computed(module: nn.Module) -> bool:
    # Pruning and FSDP write the tensors that they compute to attributes.
    computed = any(isinstance(vars(module).get(name), Tensor) for name in AFFINE | BN_RUNNING)
    return computed or parametrize.is_parametrized(module)


class Surroundings:
    """What in a model, beside a norm's parent, says that the norm must stay."""

    def __init__(self, model: nn.Module) -> None:
        self.parents = Counter(child for m in model.modules() for child in m._modules.values())
        self.owners = Counter(p for m in model.modules() for p in m.parameters(recurse=False))
        #: Module -> the (owner, attribute) pairs outside the submodules that refer to it.
        self.holders: dict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)
        for module in model.modules():
            for attribute, held in _references(module):
                self.holders[held].append((module, attribute))
        #: The modules in heads that run each of their norms over all levels of a pyramid.
        classes = {type(module) for module in model.modules()}
        heads = {cls for cls in classes if SHARED_HEADS.intersection(map(path_of, cls.__mro__))}
        self.shared = {m for head in model.modules() if type(head) in heads for m in head.modules()}

    def check(self, norm: nn.Module, names: list[str]) -> None:
        """Raise Refused if a norm of these names must stay."""
        check_plain_modules(norm)
        if any(name.rpartition(".")[2] == "_orig_mod" for name in names):
            raise Refused(
                "torch.compile holds the norm itself: convert the model before you compile it"
            )
        self.check_not_held(norm)
        if norm in self.shared and kind_of(norm) == "BN":
            raise Refused(reason_of_levels())
        inside = Counter(p for m in norm.modules() for p in m.parameters(recurse=False))
        for name, p in norm.named_parameters():
            if self.owners[p] > inside[p]:
                raise Refused(f"it shares its {name} with another module")

    def check_not_held(self, norm: nn.Module) -> None:
        """Raise Refused if an attribute of a module outside a norm would keep the norm."""
        inside = {*norm.modules()}
        for module, attribute in self.holders.get(norm, ()):
            if module not in inside:
                raise Refused(
                    f"{type(module).__name__}.{attribute} also refers to the norm: remove this "
                    "reference, then convert the model"
                )


def _references(owner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules to which a module's attributes refer, without its submodules.

    An attribute refers to a module itself, by a method or another function, or in a collection.
    """
    waiting: list[tuple[str, Any]] = [*vars(owner).items()]
    seen = {id(owner._modules)}
    for name, value in waiting:  # which grows
        if id(value) in seen:  # a collection may be inside itself
            continue
        seen.add(id(value))
        parts: Iterable[Any] = ()
        if isinstance(value, nn.Module):
            yield name, value
        elif isinstance(value, Mapping):
            parts = value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            parts = value
        elif isinstance(value, MethodType):
            parts = (value.__self__,)
        elif isinstance(value, FunctionType):  # a lambda has the variables around it in cells
            cells = (cell for cell in value.__closure__ or () if cell != CellType())
            parts = (*(value.__defaults__ or ()), *(cell.cell_contents for cell in cells))
        elif isinstance(value, partial):
            parts = (value.func, *value.args, *value.keywords.values())
        waiting += zip(repeat(name), parts)


def reason_of_levels() -> str:
    """Return why a head whose levels share each norm can't have a norm with running statistics."""
    able = ", ".join(key for key, layer in NORMS.items() if not issubclass(layer, MixtureNorm))
    return (
        "the levels of a pyramid share this head, and EN, SN and SSN would need running statistics "
        f"for each: build it with one of {able}"
    )


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks, of its forward or backward pass or its state dict."""
    return any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))
