"""The options of the layers, from their signatures and docstrings."""

import inspect
import re
from collections.abc import Iterator

from ilm_plugins.layers import NORMS
from ilm_plugins.reports.table import markdown

#: The package's layers, without the variants in this folder.
LAYERS = {k: layer for k, layer in NORMS.items() if layer.__module__.startswith("ilm_plugins.")}
#: The names of an entry of Args, and its text.
ARGUMENT = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)
#: Shown beside the name.
DEFAULT = re.compile(r"; by default [^;.]*")
#: A value of an option, in quotes.
VALUE = re.compile(r'"[^\s"]+"')


def table() -> list[str]:
    """Return a table of the options, by the layers that have them with the same meaning."""
    layers: dict[tuple[str, str], list[str]] = {}
    for key, layer in LAYERS.items():
        for option in options(layer):
            layers.setdefault(option, []).append(key)
    # What all layers have comes last.
    groups = sorted(dict.fromkeys(map(tuple, layers.values())), key=lambda g: len(g) == len(LAYERS))
    rows = []
    for group in groups:
        rows.append((f"**{'all layers' if len(group) == len(LAYERS) else ', '.join(group)}**", ""))
        rows += [option for option, keys in layers.items() if tuple(keys) == group]
    return markdown(("option and default", "meaning"), rows)


def options(layer: type) -> Iterator[tuple[str, str]]:
    """Yield name=default and meaning of a layer's options; two with one meaning are together."""
    parameters = dict(
        list(inspect.signature(layer.__init__).parameters.items())[2:]
    )  # without self and num_channels
    described = arguments(layer)
    for names in dict.fromkeys(described[name][0] for name in parameters):
        shown = [with_default(layer, name, parameters[name].default) for name in names]
        yield ", ".join(shown), described[names[0]][1]


def with_default(layer: type, name: str, default: object) -> str:
    if default == "auto":
        return f"`{name}={layer.fits_width[name]}` or less"  # type: ignore[attr-defined]
    return f"`{name}={default!r}`".replace("'", '"').replace("e-0", "e-")


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


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring as Markdown in one line, without its full stop."""
    text = re.split(r"\.\s+(?=[A-Z*`])|\.?\s*$|\.?\n\n", text, maxsplit=1)[0]
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`")
