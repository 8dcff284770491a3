"""Select norms by patterns of their names."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from ..layers import OptionError
from .report import Report

#: Names to select, as one or several patterns in which * is any text; None selects all.
Match = str | Sequence[str] | None


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


def _patterns(match: Match) -> Sequence[str]:
    """Return the patterns of the names to select; without any, one that fits every name."""
    if match is None:
        return ("*",)
    return [match] if isinstance(match, str) else match
