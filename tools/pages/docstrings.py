"""Docstrings as Markdown."""

import re


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring as Markdown in one line, without its full stop."""
    text = re.split(r"\.\s+(?=[A-Z*`])|\.?\s*$|\.?\n\n", text, maxsplit=1)[0]
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`")
