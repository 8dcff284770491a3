"""Shared by conversions and analysis: options, matching of names, reports, evaluation mode."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from ..layers import NORMS, OptionError
from ..layers.options import check_choice, check_known

#: Names to select, as one or several patterns in which * is any text; None selects all.
Match = str | Sequence[str] | None

#: Key of a layer -> the plain norm that it replaces, and that norm's options which the layer keeps.
#: See :func:`source_norm` for BatchNorm, which every layer can replace.
SOURCE_NORMS = {
    "ILMGN": ("GN", ("num_groups", "eps")),
    "ILMIN": ("IN", ("eps",)),
    "ILMLN": ("GN", ("eps",)),
    "AssocNorm": ("GN", ("num_groups", "eps")),
    "EN": ("BN", ("eps", "momentum")),
    "SN": ("BN", ("eps", "momentum")),
    "SSN": ("BN", ("eps", "momentum")),
    "AN": ("GN", ("num_groups", "eps")),
}


@dataclass
class Report:
    """Lists what a conversion did to each norm, by name; ``str()`` returns the text to print.

    Attributes:
        converted: name -> "old class -> new class".
        left: name -> why the norm or tensor stays unchanged.
        missing: names of the model's tensors that a checkpoint lacks.
        notes: further remark -> the names that it concerns; an empty list means all of them.
    """

    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def note(self, words: str | None, name: str) -> None:
        """Add a name to a remark; ``words=None`` adds nothing."""
        if words:
            self.notes.setdefault(words, []).append(name)

    def __str__(self) -> str:
        """Return a title with a count for each change, reason or remark, and its names below it.

        The text of an empty report is "no norms".
        """
        sections = []
        for title, found in (("converted", self.converted), ("left", self.left)):
            by_words = defaultdict(list)
            for name, words in found.items():
                by_words[words].append(name)
            sections += [(f"{title}, {words}", names) for words, names in by_words.items()]
        sections += [("missing", self.missing)] if self.missing else []
        sections += [(f"note, {words}", names) for words, names in self.notes.items()]
        lines = []
        for title, names in sections:
            lines.append(f"{title} ({len(names)}):" if names else title)
            lines += [f"    {name or '(root)'}" for name in names]
        return "\n".join(lines) or "no norms"


def matches(name: str, match: Match) -> bool:
    """Return whether a name fits one of the patterns; None fits every name."""
    patterns = [match] if isinstance(match, str) else match
    return patterns is None or any(fnmatchcase(name, p) for p in patterns)


def check_match(match: Match, names: Iterable[str]) -> None:
    """Raise OptionError if there are names and none of them fits the patterns.

    Args:
        match: see :data:`Match`.
        names: names of all norms that could be selected; without any, nothing is checked.
    """
    names = list(names)
    if names and not any(matches(name, match) for name in names):
        raise OptionError(
            f"match={match!r} fits none of the {len(names)} norms, such as {names[0]!r}; "
            "give names, with * for any characters"
        )


def source_norm(to: str, replacing: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the plain norm that a layer replaces, and that norm's options which the layer keeps.

    Args:
        to: key of the layer, one of :data:`SOURCE_NORMS`.
        replacing: the plain norm: None for that of :data:`SOURCE_NORMS`, or "BN".

    Raises:
        OptionError: the layer does not replace this norm.
    """
    plain, kept = SOURCE_NORMS[to]
    if replacing in (None, plain):
        return plain, kept
    check_choice("convert", "replacing", replacing, dict.fromkeys((plain, "BN")))
    return "BN", ("eps",)


def check_layer(
    to: str, options: Mapping, replacing: str | None = None, of_model: bool = False
) -> None:
    """Raise OptionError if norms cannot be converted to a layer with these options.

    Only the names of options are checked, and the value of ``init``; the layer's constructor checks
    the other values.

    Args:
        to: key of the layer in :data:`~ilm_plugins.NORMS`.
        options: for the layer's constructor. Not allowed are num_channels, device and dtype, whose
            values come from each norm, and another ``init`` than "identity".
        replacing: see :func:`source_norm`.
        of_model: whether a model is converted; the options in :data:`SOURCE_NORMS`, such as eps and
            num_groups, then also come from each norm and are not allowed.
    """
    check_choice("convert", "to", to, SOURCE_NORMS)
    check_known(NORMS[to], options)
    of_norm = source_norm(to, replacing)[1]
    kept = *(of_norm if of_model else ()), "num_channels", "device", "dtype"
    given = [name for name in kept if name in options]
    if given:
        raise OptionError(f"{', '.join(given)} comes from each norm; leave it out")
    if options.get("init", "identity") != "identity":
        raise OptionError(
            f"init={options['init']!r}: a converted layer starts as the norm that it replaces; "
            "leave init out"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, and restore the mode of each module at exit."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
