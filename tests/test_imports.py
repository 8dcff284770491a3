"""The rooms of the package, and which of them may import which."""

import ast
import json
import re
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import ilm_plugins
from helpers import processes

PACKAGE = Path(ilm_plugins.__file__).parent
#: From the lowest room to the highest; a room imports only lower ones.
ROOMS = [
    *("version", "errors", "trust", "configs", "parent_process", "foreign_norms", "ops", "layers"),
    *("files", "images", "shapes", "reports", "checkpoints", "surgery", "frameworks"),
    *("comparison", "pix2pix", "cli"),
]
#: They put the package together.
TOP = {"__init__.py", "__main__.py"}


def imported(path):
    """The modules that a file imports or names, in functions too, without "ilm_plugins."."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            module = [node.module] if node.module else []
            yield from (".".join((*above, *module, name.name)) for name in node.names)
            continue
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.Constant):  # as import_module and import hooks take it
            names = re.findall(r"^ilm_plugins(?:\.\w+)+$", str(node.value))
        for name in names:
            if name.startswith("ilm_plugins."):
                yield name.removeprefix("ilm_plugins.")


def upwards(files):
    """The imports of a higher room, as "FILE imports MODULE"."""
    found = []
    for path in files:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in imported(path):
            target = module.partition(".")[0]
            if target in ROOMS and ROOMS.index(target) > ROOMS.index(room):
                found.append(f"{path.relative_to(PACKAGE)} imports {module}")
    return found


def test_rooms_import_only_lower_rooms():
    files = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).as_posix() not in TOP]
    assert not upwards(files)


def test_no_room_hides_a_public_name():
    """An imported submodule becomes an attribute of the package."""
    assert not {path.stem for path in PACKAGE.iterdir()} & {*ilm_plugins.__all__}


#: Modules within a room that are public: configs or the pages' tables name them.
NAMED = {
    "frameworks.openmmlab.standardize_image",
    *("pix2pix.pairs", "pix2pix.training"),
    *("reports.interval", "reports.style", "reports.table"),
}


def from_imports(folder):
    """The (file, module, name) of each "from MODULE import NAME" with an absolute module."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                yield from ((path.name, node.module, name.name) for name in node.names)


def test_the_reproduction_uses_public_names_alone():
    """Of a room, those that it exports; of other modules, those without a leading underscore."""
    for file, module, name in from_imports(PACKAGE.parent / "reproduction"):
        package, _, below = module.partition(".")
        if package != "ilm_plugins":
            continue
        where = f"{file}: from {module} import {name}"
        assert "." not in below or below in NAMED, where
        found = import_module(module)
        exported = getattr(found, "__all__", [name])
        assert name in exported or (hasattr(found, "__path__") and not below), where
        assert not name.startswith("_"), where


def test_the_package_does_not_import_the_reproduction():
    assert not [one for one in from_imports(PACKAGE) if one[1].partition(".")[0] == "reproduction"]


def imports_of_files(package):
    """File -> the files that it imports, by their modules' names, but a part its own package."""
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }

    def file_of(name):
        return name if name in modules or not name else file_of(name.rpartition(".")[0])

    graph = {name: {*map(file_of, imported(path))} for name, path in modules.items()}
    return {
        name: {other for other in found if not f"{name}.".startswith(f"{other}.")} - {""}
        for name, found in graph.items()
    }


def test_no_files_import_each_other():
    """Not for types, in functions or by a hook, either."""
    TopologicalSorter(imports_of_files(PACKAGE)).prepare()  # CycleError names a circle


LOAD = """
import json, sys
import ilm_plugins
before = {*sys.modules}
import ilm_plugins.surgery
print(json.dumps(sorted({*sys.modules} - before)))
"""


def test_hooks_load_nothing_of_a_higher_room_and_no_framework():
    """Surgery, which imports all lower rooms, triggers no hook of another room."""
    loaded = json.loads(processes.run([sys.executable, "-c", LOAD], check=True).stdout)
    rooms = ROOMS[ROOMS.index("frameworks") :]
    own = [m.removeprefix("ilm_plugins.") for m in loaded if m.startswith("ilm_plugins.")]
    assert not [module for module in own if module.partition(".")[0] in rooms]
    frameworks = {"detectron2", "fvcore", "mmcv", "mmengine", "timm"}
    assert not frameworks.intersection(module.partition(".")[0] for module in loaded)
