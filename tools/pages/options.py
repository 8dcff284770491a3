"""The options of the layers, from their signatures and docstrings."""

import inspect
import re
from collections.abc import Iterator

from ilm_plugins.experiments.reports.table import of_dicts
from ilm_plugins.layers import NORMS
from ilm_plugins.layers.options import parameters_of

from .docstrings import first_sentence

#: The names of an entry of Args, and its text.
ARGUMENT = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)
#: Said in the column of the defaults.
DEFAULT = re.compile(r"; by default [^;.]*")
#: A value of an option, in quotes.
VALUE = re.compile(r'"[^\s"]+"')


def table() -> list[str]:
    """Return a table with a row for each option and each of its meanings."""
    layers: dict[tuple[str, str, str], list[str]] = {}
    for key, layer in NORMS.items():
        for row in options(layer):
            layers.setdefault(row, []).append(key)
    rows = [
        {
            "option": names,
            "layers": "all" if len(keys) == len(NORMS) else ", ".join(keys),
            "default": default,
            "meaning": meaning,
        }
        for (names, default, meaning), keys in layers.items()
    ]
    # What all layers have comes last.
    return of_dicts(sorted(rows, key=lambda row: row["layers"] == "all"))


def options(layer: type) -> Iterator[tuple[str, str, str]]:
    """Yield names, default and meaning of a layer's options; two with one meaning are together."""
    parameters = dict(list(parameters_of(layer).items())[2:])  # without self and num_channels
    described = arguments(layer)
    for names in dict.fromkeys(described[name][0] for name in parameters):
        shown = ", ".join(f"`{name}`" for name in names)
        yield shown, default(layer, names[0], parameters[names[0]]), described[names[0]][1]


def default(layer: type, name: str, parameter: inspect.Parameter) -> str:
    if parameter.default == "auto":
        return f"{layer.fits_width[name]} or less"  # type: ignore[attr-defined]
    text = repr(parameter.default)
    return f"`{text}`".replace("'", '"')


def arguments(layer: type) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return argument -> (the names that its docstring lists with it, the meaning).

    The meaning is the first sentence, without the default.
    """
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for base in layer.__mro__:
        _, _, section = inspect.cleandoc(vars(base).get("__doc__") or "").partition("\nArgs:\n")
        section = section.split("\n\n")[0]
        for listed, text in ARGUMENT.findall(section):
            names, meaning = tuple(listed.split(", ")), DEFAULT.sub("", first_sentence(text))
            for name in names:
                found.setdefault(name, (names, VALUE.sub(r"`\g<0>`", meaning)))
    return found
