"""Which part of the package imports which: only lower levels, and in no circle."""

import ast
from graphlib import TopologicalSorter

import pytest

#: The parts of ilm_plugins, the lowest level first; a part imports only parts of lower levels.
LEVELS = (
    {"errors", "version"},
    {"configs", "ops"},
    {"layers"},
    {"checkpoints", "data"},
    {"surgery"},
    {"analysis"},
    {"frameworks"},
    {"pix2pix", "reproduction"},
    {"cli"},
    {"", "__main__"},  # the package's root, which makes the frameworks know the layers
)


@pytest.fixture(scope="module")
def imports(root):
    """Each module of the package, with the modules that it imports, anywhere in its code."""
    paths = {}
    for path in sorted((root / "ilm_plugins").rglob("*.py")):
        *parts, stem = path.relative_to(root).with_suffix("").parts
        paths[".".join(parts if stem == "__init__" else [*parts, stem])] = path
    return {name: set(_imported(name, path, paths)) - {name} for name, path in paths.items()}


def _imported(name, path, modules):
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level]
            words = [*(base if node.level else ()), *filter(None, [node.module])]
            source = ".".join(words)
            for alias in node.names:
                found = [n for n in (f"{source}.{alias.name}", source) if n in modules]
                yield from found[:1]


def level(module):
    part = module.split(".")[1] if "." in module else ""
    return part, next(i for i, parts in enumerate(LEVELS) if part in parts)


def test_parts_import_only_lower_levels(imports):
    wrong = []
    for module, others in imports.items():
        part, height = level(module)
        for other in others:
            other_part, other_height = level(other)
            if part != other_part and other_height >= height:
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_no_module_imports_itself_through_others(imports):
    assert list(TopologicalSorter(imports).static_order())  # raises CycleError, which names them
