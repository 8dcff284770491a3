"""A digest of files of code, by which a run's record tells if they have changed since."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
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
        return [*_imports(ast.parse(code))]
    except (SyntaxError, ValueError):  # of another language
        return []


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, one.name) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield node.level, module
            yield from ((node.level, f"{module}.{one.name}".strip(".")) for one in node.names)
