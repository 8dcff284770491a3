"""The report on a conversion: what became of each norm."""

import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import printable

#: How many names of each kind a report's summary has.
SHOWN = 3


@dataclass(repr=False)
class Report:
    """Lists what a conversion did to each norm, by name.

    It prints as a summary, with the first names of each kind; :meth:`names` returns all names.

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

    def __repr__(self) -> str:
        def first(names: list[str]) -> str:
            return " " + ", ".join(names[:SHOWN] + ["..."] * (len(names) > SHOWN))

        return self._text(first)

    def names(self) -> str:
        """Return the text with every name, one a line."""
        return self._text(lambda names: "".join(f"\n    {name}" for name in names))

    def _text(self, show: Callable[[list[str]], str]) -> str:
        sections = defaultdict(list)
        for name, classes in self.converted.items():
            sections[f"converted, {classes}"].append(name)
        for name, reason in self.left.items():
            sections[f"skipped, {reason}"].append(name)
        if self.missing:
            sections["missing"] = self.missing
        sections |= {f"note, {remark}": names for remark, names in self.notes.items()}
        lines = []
        for title, names in sections.items():
            names = [printable(name) or "(root)" for name in names]
            lines.append(f"{title} ({len(names)}):{show(names)}" if names else title)
        return "\n".join(lines) or "no norms"


def warn_of_nothing(report: Report) -> None:
    """Warn the caller of a conversion that changed nothing, and may not read the report."""
    if not report.converted:
        reasons = "; ".join(dict.fromkeys(report.left.values())) or "there are no norms"
        warnings.warn(f"nothing was converted: {reasons}", stacklevel=3)
