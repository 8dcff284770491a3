"""Shared by conversions and analysis: selection by name, reports, evaluation mode, inputs."""

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from html import escape
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import printable
from ..layers import NORMS, OptionError
from ..layers.options import check, check_choice, check_known, parameters_of
from .norms import LAYERS
from .rules import sources_for
from .sources import Source

#: Names to select, as one or several patterns in which * is any text; None selects all.
Match = str | Sequence[str] | None
#: How many names of each kind a report's summary has.
SHOWN = 3


@dataclass
class Report:
    """Lists what a conversion did to each norm, by name.

    ``str()`` returns a summary, with the first names of each kind; :meth:`names` returns all names.

    Attributes:
        converted: name -> "old class -> new class".
        left: name -> why the norm or tensor was not converted.
        missing: names of the model's tensors that a checkpoint lacks.
        notes: further remark -> the names that it concerns; an empty list means all of them.
    """

    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def note(self, remark: str | None, name: str) -> None:
        """Add a name to a remark; ``remark=None`` adds nothing."""
        if remark:
            self.notes.setdefault(remark, []).append(name)

    def __str__(self) -> str:
        lines = []
        for title, names in self._sections():
            lines.append(f"{title} ({len(names)}): {self._first(names)}" if names else title)
        return "\n".join(lines) or "no norms"

    def _repr_html_(self) -> str:
        """A row for each kind, as a notebook shows it."""
        rows = []
        for title, names in self._sections():
            cells = title, str(len(names) or ""), self._first(names)
            rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
        body = "".join(f"<tr>{row}</tr>" for row in rows or ["<td>no norms</td>"])
        return f"<table>{body}</table>"

    def names(self) -> str:
        """Return the text with every name, one a line."""
        lines = []
        for title, names in self._sections():
            lines.append(f"{title} ({len(names)}):" if names else title)
            lines += [f"    {name}" for name in names]
        return "\n".join(lines) or "no norms"

    @staticmethod
    def _first(names: list[str]) -> str:
        return ", ".join(names[:SHOWN] + ["..."] * (len(names) > SHOWN))

    def _sections(self) -> Iterator[tuple[str, list[str]]]:
        """Yield titles, and the names below them as they are printed."""
        sections = defaultdict(list)
        for name, classes in self.converted.items():
            sections[f"converted, {classes}"].append(name)
        for name, reason in self.left.items():
            sections[f"skipped, {reason}"].append(name)
        if self.missing:
            sections["missing"] = self.missing
        sections |= {f"note, {remark}": names for remark, names in self.notes.items()}
        for title, names in sections.items():
            yield title, [printable(name) or "(root)" for name in names]


def matches(name: str, match: Match) -> bool:
    """Return whether a name fits one of the patterns; None fits every name."""
    return any(fnmatchcase(name, pattern) for pattern in _patterns(match))


def check_match(match: Match, names: Iterable[str]) -> None:
    """Raise OptionError if there are names and none of them fits the patterns."""
    names = list(names)
    if names and not any(matches(name, match) for name in names):
        raise OptionError(
            f"{match!r} fits none of the {len(names)} norms, such as {names[0]!r}; "
            "give names, with * for any characters"
        )


def report_of_match(match: Match, names: Iterable[str]) -> Report:
    """Return a report that notes patterns without a norm; OptionError if no pattern has one."""
    names = list(names)
    check_match(match, names)
    report = Report()
    for pattern in _patterns(match) if names else ():
        if not any(matches(name, pattern) for name in names):
            report.note("pattern of match that fits no norm", pattern)
    return report


def warn_of_nothing(report: Report) -> None:
    """Warn the caller of a conversion that changed nothing, and may not read the report."""
    if not report.converted:
        reasons = "; ".join(dict.fromkeys(report.left.values())) or "there are no norms"
        warnings.warn(f"nothing was converted: {reasons}", stacklevel=3)


def _patterns(match: Match) -> Sequence[str]:
    """Return the patterns of the names to select; without any, one that fits every name."""
    if match is None:
        return ("*",)
    return [match] if isinstance(match, str) else match


class Swap(NamedTuple):
    """Plain norms to replace by a layer, which takes some options from each norm."""

    key: str
    source: Source
    of_norm: list[str]
    options: dict[str, Any]

    @property
    def layer(self) -> type[nn.Module]:
        return NORMS[self.key]


def source_norm(to: str, replacing: str | None, options: Mapping[str, Any]) -> Swap:
    """Return the conversion to a layer; OptionError if an argument is unknown."""
    keys = [key for key, layer in NORMS.items() if layer in LAYERS]
    check(to in keys, f"{to!r} is no norm to convert to; give one of {', '.join(keys)}")
    layer = NORMS[to]
    default, *others = sources_for(layer)
    choices = {source.name: source for source in (default, *others)}
    check_choice("convert", "replacing", replacing or default.name, choices)
    source = choices[replacing or default.name]
    parameters = parameters_of(layer)
    check_known(layer.__name__, options, parameters)
    check_absent(options, "num_channels", "device", "dtype")
    if options.get("init", "identity") != "identity":
        raise OptionError(f"init={options['init']!r}: a converted layer has init='identity'")
    fixed = {"init": "identity"} if "init" in parameters else {}
    of_norm = [o for o in source.options if o in parameters]
    return Swap(to, source, of_norm, {**options, **fixed})


def check_absent(options: Mapping, *of_norm: str) -> None:
    """Raise OptionError for options that each norm determines."""
    if given := ", ".join(option for option in of_norm if option in options):
        raise OptionError(f"{given} comes from each norm; leave it out")


def _uncompiled() -> AbstractContextManager:
    """Return a context in which torch.compile has no effect."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, compiled models to run uncompiled; undo both at exit.

    Code that torch.compile has compiled does not call hooks that are registered later.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _uncompiled():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def watching(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``see`` with name and input of each call; calls with empty input are skipped."""

    def hook(name: str, layer: nn.Module, inputs: tuple, named: dict) -> None:
        x = inputs[0] if inputs else named["x"]
        if len(x):
            see(name, x)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True)
            hooks.callback(handle.remove)
        yield
