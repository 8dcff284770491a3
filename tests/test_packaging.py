"""What `pip install .` gives, from the sources, from an sdist, and in place."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import ilm_plugins
from ilm_plugins import errors

PIP = (sys.executable, "-m", "pip")
IN = ("--no-deps", "--no-build-isolation", "-q")
#: Without what CI sets for its own build.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("ILM_PLUGINS_")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the tracked files, as they are in the working tree."""
    folder, root = tmp_path_factory.mktemp("source"), Path(__file__).parents[1]
    command = "git", "-C", str(root), "ls-files", "-z"
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name, follow_symlinks=False)
    return folder


def run(*command, fails=False, cwd=None, **variables):
    env = {**ENVIRONMENT, **variables}
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
    assert bool(done.returncode) == fails, done.stderr[-3000:]
    return done.stdout + done.stderr if fails else done.stdout


def wheel_of(source, folder, **variables):
    """The wheel of a folder or an sdist: its tag, the names in it, its metadata's lines."""
    run(*PIP, "wheel", source, *IN, "-w", folder, **variables)
    (wheel,) = folder.glob("ilm_plugins-*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (metadata,) = (n for n in names if n.endswith("METADATA"))
        lines = files.read(metadata).decode().splitlines()
    return wheel.stem.split("-", 2)[2], names, lines


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory):
    """A folder with the wheel without kernels; its tag, names and metadata."""
    folder = tmp_path_factory.mktemp("plain")
    of_platform = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for kind in ("lib", of_platform):  # where an earlier build has left a module
        left = source / "build" / kind / "ilm_plugins"
        left.mkdir(parents=True)
        (left / "removed.py").touch()
    return folder, *wheel_of(source, folder, ILM_PLUGINS_WITHOUT_C="1")


def requirements(lines):
    return [line for line in lines if line.startswith("Requires-Dist")]


def test_the_wheel_needs_torch_and_wrapt_alone(plain):
    *_, lines = plain
    hard = [line for line in requirements(lines) if "extra ==" not in line]
    assert len(requirements(lines)) > len(hard)
    assert {line.split()[1].rstrip("<>=.0123456789") for line in hard} == {"torch", "wrapt"}


def test_a_torch_older_than_pip_would_install_is_refused_in_one_line(plain):
    ((oldest,),) = (re.findall(r"torch>=(.*)", line) for line in requirements(plain[-1])[:1])
    code = "import sys, torch; torch.__version__ = type(torch.__version__)('2.4.1+cu124')"
    code += "; from ilm_plugins.__main__ import main; sys.exit(main([]))"
    found = run(sys.executable, "-c", code, fails=True)
    message = f"got torch 2.4.1+cu124, expected {oldest} or newer; upgrade it"
    assert found == f"-c: error: ilm_plugins: {message}\n"


@pytest.mark.parametrize("package, extra", errors.EXTRAS.items())
def test_an_extra_has_what_a_message_says_that_it_installs(plain, package, extra):
    *_, lines = plain
    name = {"PIL": "pillow"}.get(package, package)
    assert any(re.search(rf": {name}\b.* \"{extra}\"$", line) for line in requirements(lines))


def test_the_wheel_has_every_module(source, plain):
    modules = {str(p.relative_to(source)) for p in (source / "ilm_plugins").rglob("*.py")}
    assert modules <= set(plain[2])


def test_the_wheel_has_no_module_of_an_earlier_build(plain):
    assert "ilm_plugins/removed.py" not in plain[2]


def test_the_wheel_has_the_package_alone(plain):
    assert {name.split("/")[0].split("-")[0] for name in plain[2]} == {"ilm_plugins"}


def test_a_wheel_without_kernels_is_for_every_machine(plain):
    _, tag, names, _ = plain
    assert tag == "py3-none-any"
    assert not [name for name in names if name.endswith(".so")]


def test_the_version_is_the_same_everywhere(root, plain):
    _, _, _, lines = plain
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    heading = re.search(r"^## (\S+?),? ", (root / "CHANGELOG.md").read_text(), re.M)
    assert f"Version: {ilm_plugins.__version__}" in lines
    assert citation["version"] == heading[1] == ilm_plugins.__version__


def test_the_wheel_has_every_config_once(source, plain):
    _, _, names, _ = plain
    files = (path for path in (source / "configs").rglob("*") if path.is_file())
    tracked = {path.relative_to(source) for path in files}
    tracked = {str(path) for path in tracked if path.parent.name != "__pycache__"}
    shipped = [name for name in names if "/configs/" in name]
    assert sorted(shipped) == sorted(f"ilm_plugins/.mim/{path}" for path in tracked)
    assert "ilm_plugins/.mim/model-index.yml" in names


@pytest.mark.wide
def test_an_installed_wheel_finds_its_configs_without_a_checkout(plain, root, tmp_path):
    for package in ("mmseg", "detectron2"):
        pytest.importorskip(package, reason=f"needs {package}")
    (wheel,) = plain[0].glob("*.whl")
    site = tmp_path / "site"
    run(*PIP, "install", *IN, "--target", site, wheel)
    (tmp_path / "mine.py").write_text("_base_ = 'ilm_plugins::mmseg/fcn_r50-d8_ade20k_en.py'\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: ilm_plugins://mask_rcnn_R_50_FPN_batch2_en.yaml\n")
    # Not this process's own path, which has the checkout.
    run(
        sys.executable,
        root / "tests/programs/read_configs.py",
        site,
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )


@pytest.mark.wide
def test_a_wheel_of_the_sdist_has_the_kernels_for_every_python(source, plain, tmp_path):
    run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = files.getnames()
    ops = {name.partition("ilm_plugins/ops/")[2] for name in names}
    assert {"engine/cpu/kernels.cpp", "networks/exemplar/cpu.hpp"} <= ops
    assert not [name for name in names if "/tests" in name], "tests without what they need"
    tag, names, _ = wheel_of(archive, tmp_path, ILM_PLUGINS_REQUIRE_C="1")
    assert tag.startswith("py3-none-")
    assert tag != "py3-none-any"
    # The sources were built without the kernels.
    assert set(names) == {*plain[2], "ilm_plugins/ops/engine/cpu/kernels.so"}
    (wheel,) = tmp_path.glob("*.whl")
    run(*PIP, "install", *IN, "--target", tmp_path / "site", wheel)
    assert kernels_of(tmp_path / "site") == "cpu"


def kernels_of(folder):
    """The backend that a layer takes, where the package is imported from a folder."""
    program = Path(__file__).parent / "programs/print_kernels.py"
    printed = run(sys.executable, program, folder, cwd=folder, PYTHONPATH=str(folder))
    return printed.split()[-1].rpartition(".")[2]


@pytest.fixture
def compilers(tmp_path):
    """C++ compilers that cannot build the kernels, and what each says."""
    (old := tmp_path / "g++-8").write_text('#!/bin/sh\nexec g++ -U__GNUC__ -D__GNUC__=8 "$@"\n')
    (bare := tmp_path / "g++-bare").write_text('#!/bin/sh\nexec g++ -nostdinc "$@"\n')
    for script in (old, bare):
        script.chmod(0o755)
    return {
        "none": ("/nowhere/g++", "command '/nowhere/g++' failed"),
        "broken": ("/bin/false", "command '/bin/false' failed"),
        "old": (str(old), "the kernels need g++ 9 or newer, or clang++"),
        "without headers": (str(bare), "cmath: No such file or directory"),
    }


@pytest.mark.wide
@pytest.mark.parametrize("kind", ["none", "broken", "old", "without headers"])
def test_without_a_compiler_that_works_the_kernels_are_left_out(source, tmp_path, compilers, kind):
    compiler, says = compilers[kind]
    tag, *_ = wheel_of(source, tmp_path, CXX=compiler)
    assert tag == "py3-none-any"
    required = {"CXX": compiler, "ILM_PLUGINS_REQUIRE_C": "1"}
    assert says in run(*PIP, "wheel", source, *IN, "-w", tmp_path, fails=True, **required)


@pytest.mark.wide
@pytest.mark.parametrize("editable", [True, False])
def test_kernels_that_do_not_compile_are_an_error_with_the_compilers_message(
    source, tmp_path, editable
):
    broken = shutil.copytree(source, tmp_path / "source", symlinks=True)
    kernels = broken / "ilm_plugins/ops/engine/cpu/kernels.cpp"
    kernels.write_text("int mistake = undeclared;\n" + kernels.read_text())
    command = (*PIP, "install", *IN, "--target", tmp_path / "site", *["-e"] * editable, broken)
    printed = run(*command, fails=True)
    assert "kernels.cpp:1:15: error: " in printed
    assert "to install without the kernels, set ILM_PLUGINS_WITHOUT_C=1" in printed
    run(*command, ILM_PLUGINS_WITHOUT_C="1")
