"""Which part of the package imports which: only lower levels, and in no circle."""

import ast
from graphlib import TopologicalSorter
from importlib.util import resolve_name

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


def imported(name, path, modules):
    """The package's modules that a module imports, anywhere in its code."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield from [n for n in (f"{source}.{alias.name}", source) if n in modules][:1]


def part_of(module):
    return module.split(".")[1] if "." in module else ""


def test_parts_import_only_lower_levels_and_modules_form_no_circle(root):
    paths = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / "ilm_plugins").rglob("*.py")
    }
    imports = {n: {*imported(n, path, paths.keys())} - {n} for n, path in paths.items()}
    heights = {part: i for i, parts in enumerate(LEVELS) for part in parts}
    for module, others in imports.items():
        for here, there in ((part_of(module), part_of(other)) for other in others):
            assert here == there or heights[there] < heights[here], f"{module} imports {there}"
    assert [*TopologicalSorter(imports).static_order()]  # raises CycleError, which names them
