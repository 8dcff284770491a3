"""A digest of files of code, by which a run's record tells if they have changed since."""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path


def digest_of_files(files: Iterable[Path]) -> str:
    """Return 12 digits of the SHA-256 of files and of the files beside them that they import."""
    contents = {}
    for file in files:
        todo = [file.absolute()]
        while todo:
            path = todo.pop()
            if path not in contents and path.is_file():
                contents[path] = path.read_bytes()
                for level, name in _imported(contents[path]):
                    folder = path.parents[level - 1] if level else file.absolute().parent
                    inner = folder.joinpath(*name.split("."))
                    todo += [Path(f"{inner}.py"), inner / "__init__.py"]
    digests = sorted(hashlib.sha256(content).hexdigest() for content in contents.values())
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12] if digests else ""


@cache
def _imported(code: bytes) -> list[tuple[int, str]]:
    """Return the modules that Python code imports, each with its number of leading dots."""
    try:
        nodes = [*ast.walk(ast.parse(code))]
    except (SyntaxError, ValueError):  # of another language
        return []
    modules = []
    for node in nodes:
        if isinstance(node, ast.Import):
            modules += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names]
            modules += [(node.level, name) for name in (node.module or "", *inner)]
    return modules
