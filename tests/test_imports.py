"""The rooms of the package, and which of them may import which."""

import ast
from pathlib import Path

import pytest

import ilm_plugins

PACKAGE = Path(ilm_plugins.__file__).parent
#: From the lowest room to the highest; a room imports only lower ones.
ROOMS = [
    *("version", "errors", "trust", "configs", "ops", "layers", "checkpoints", "surgery"),
    *("frameworks", "experiments", "cli"),
]
#: The rooms within experiments, likewise.
EXPERIMENTS = ["data", "models", "pix2pix", "analysis", "compare", "papers"]
#: They put the package together.
TOP = {"__init__.py", "__main__.py"}


def imported(path):
    """The modules that a file imports from the package, dotted, without "ilm_plugins."."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [name.name for name in node.names]
            yield from (".".join((*above, name)) for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ilm_plugins."):
            yield node.module.removeprefix("ilm_plugins.")


def upwards(files, rooms, depth):
    """The imports of a higher room, as "FILE imports MODULE"."""
    found = []
    for path in files:
        room = path.relative_to(PACKAGE).parts[depth].removesuffix(".py")
        for module in imported(path):
            target = [*module.split("."), ""][depth]
            if target in rooms and rooms.index(target) > rooms.index(room):
                found.append(f"{path.relative_to(PACKAGE)} imports {module}")
    return found


def test_rooms_import_only_lower_rooms():
    files = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).as_posix() not in TOP]
    assert not upwards(files, ROOMS, 0)


def test_experiments_import_only_lower_experiments():
    files = [p for p in (PACKAGE / "experiments").rglob("*.py") if p.parent.name != "experiments"]
    assert not upwards(files, EXPERIMENTS, 1)


@pytest.mark.parametrize("module", ["ilm_plugins.cli", "ilm_plugins.experiments"])
def test_an_import_upwards_is_found(tmp_path, monkeypatch, module):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "base.py").write_text(f"from {module}.x import y\n")
    (found,) = upwards([tmp_path / "layers" / "base.py"], ROOMS, 0)
    assert found == f"layers/base.py imports {module.removeprefix('ilm_plugins.')}.x"
