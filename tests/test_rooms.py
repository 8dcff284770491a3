"""What imports what in the package: from the upper rooms to the lower ones, and in no circle."""

import ast
from graphlib import TopologicalSorter

import pytest

#: The rooms of ilm_plugins, from the ground up; a room imports rooms of floors below its own.
FLOORS = (
    {"errors", "start", "version"},
    {"configs", "ops"},
    {"layers"},
    {"checkpoints", "data"},
    {"surgery"},
    {"analysis"},
    {"frameworks"},
    {"pix2pix"},
    {"cli"},
    {"reproduction"},
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


def floor(module):
    room = module.split(".")[1] if "." in module else ""
    return room, next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_rooms_import_from_the_floors_below(imports):
    wrong = []
    for module, others in imports.items():
        room, height = floor(module)
        for other in others:
            of_other, below = floor(other)
            if room != of_other and below >= height:
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_no_module_imports_itself_through_others(imports):
    assert list(TopologicalSorter(imports).static_order())  # raises CycleError, which names them


def test_what_is_found_of_imports(imports):
    """The reading of imports itself: absolute and relative ones, of modules and of names."""
    assert {"ilm_plugins.layers", "ilm_plugins.frameworks"} <= imports["ilm_plugins"]
    assert "ilm_plugins.ops" in imports["ilm_plugins.layers.base"]
    assert "ilm_plugins.ops.backends" in imports["ilm_plugins.ops.autograd"]
