"""What `pip install .` gives."""

import shutil
import subprocess
import sys
import zipfile

SOURCES = ("ilm_plugins", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def test_the_wheel_needs_torch_and_wrapt_alone(root, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name)
        else:
            shutil.copy(root / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", "-q", "--no-deps", "--no-build-isolation"],
        cwd=source,
        check=True,
    )
    (wheel,) = source.glob("ilm_plugins-*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (metadata,) = (n for n in names if n.endswith("METADATA"))
        lines = files.read(metadata).decode().splitlines()
    needed = [line.split()[1] for line in lines if line.startswith("Requires-Dist")]
    hard = [line for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(needed) > len(hard)
    assert {line.split()[1].rstrip("<>=.0123456789") for line in hard} == {"torch", "wrapt"}
    assert "License-Expression: Apache-2.0" in lines
    modules = {str(p.relative_to(root)) for p in (root / "ilm_plugins").rglob("*.py")}
    assert modules <= set(names)
    assert "ilm_plugins/reproduction/papers.json" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ilm_plugins"}
