"""Tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence


def markdown(
    columns: Iterable[str], rows: Iterable[Iterable[str]], aligned: bool = False
) -> list[str]:
    """Return the lines of a table; ``aligned`` pads the columns, to read them in a terminal."""
    cells = [[text.replace("|", r"\|") for text in row] for row in (columns, *rows)]
    rule = ["---"] * len(cells[0])
    if not aligned:
        return [_row(cells[0]), f"|{'|'.join(rule)}|", *map(_row, cells[1:])]
    heads = [f"{head}  " for head in cells[0]]
    widths = [max(map(len, column)) for column in zip(heads, *cells[1:], strict=True)]
    rule = [f":{'-' * (width + 1)}" for width in widths]
    padded = [[*map(str.ljust, row, widths)] for row in cells]
    return [_row(padded[0]), f"|{'|'.join(rule)}|", *map(_row, padded[1:])]


def of_dicts(rows: Sequence[Mapping[str, str]], aligned: bool = False) -> list[str]:
    """Return the lines of a table with a column for each key; "" for a missing one."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return markdown(columns, ([row.get(name, "") for name in columns] for row in rows), aligned)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
