"""The compiled library: its sources, its symbols, and what sanitizers find."""

import shutil
import subprocess
from functools import partial

import pytest
import torch

from equations.cases import assert_exact, inputs, needs_kernels, randomized
from helpers import fuzz
from ilm_plugins import NORMS
from ilm_plugins.ops import cpu
from ilm_plugins.ops.engine.cpu import library

FOLDER = library.FOLDER
SOURCES = sorted(FOLDER.rglob("*.[ch]pp"))
COMPILER = shutil.which("g++") or shutil.which("clang++")


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("expansion, size", [(1, 1.0), (3, 1e-4), (17, 30.0), (50, 0.02)])
def test_hidden_values_of_any_number_and_size_are_exact(expansion, size, dtype):
    """Which are lanes of vectors; small ones, and some where their activation saturates."""
    layer = randomized(partial(NORMS["EN"], 32, reduction=8, expansion=expansion), dtype)
    layer.expand.weight.detach().mul_(size)
    x, dy = (inputs(3, 32, 5, 4, dtype=dtype, seed=seed) for seed in (1, 2))
    assert_exact(layer, x, dy, "cpu")


def symbols(*options):
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    printed = subprocess.check_output(["nm", *options, str(library.LIBRARY)], text=True)
    return [line.split()[-1].split("@")[0] for line in printed.splitlines()]


@needs_kernels
def test_the_library_needs_nothing_of_the_cpp_library():
    needed = symbols("--dynamic", "--undefined-only")
    assert "memcpy" in needed
    # Each library in C has __cxa_finalize, of libc.
    assert not [
        n for n in needed if n.startswith(("_Z", "__cxa", "__gxx")) if n != "__cxa_finalize"
    ]


@needs_kernels
def test_no_function_can_be_that_of_another_instruction_set():
    """The linker keeps one of several functions with external linkage and the same name."""
    of_cpp = [name for name in symbols("--defined-only") if name.startswith("_Z")]
    assert not [name for name in of_cpp if "_GLOBAL__N_" not in name]


# ---- options


@needs_kernels
def test_a_choice_that_the_library_lacks_is_refused():
    layer = NORMS["EN"](8, reduction=2)
    network = layer.describe()._replace(normalizers=("IN", "PN"))
    message = "the kernels know no normalizers='PN', only IN, LN, BN, GN"
    with pytest.raises(RuntimeError, match=message):
        cpu.find_plan(torch.ones(2, 8, 3), 8, network, layer.rescale_tensors(), ())


# ---- a stale library


@pytest.fixture
def other_sources(monkeypatch, tmp_path):
    """A copy of the sources, from which the library should have been compiled."""
    for path in SOURCES:
        copied = tmp_path / path.relative_to(FOLDER)
        copied.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(path, copied)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    cpu.load_problem.cache_clear()
    yield tmp_path
    cpu.load_problem.cache_clear()


@needs_kernels
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_library_compiled_before_a_source_changed_is_refused(path, other_sources):
    with (other_sources / path.relative_to(FOLDER)).open("a") as file:
        file.write("\n")
    message = r"kernels.so was compiled from other sources .*; run 'pip install -e \.'"
    with pytest.raises(RuntimeError, match=message):
        NORMS["ILMGN"](64)(torch.ones(1, 64, 3, 3))


# ---- memory


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.wide
def test_sanitizers_find_nothing_in_random_cases():
    with fuzz.sanitized() as (path, env):
        command = [*fuzz.COMMAND, "--seconds=20", f"--library={path}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.long
@pytest.mark.parametrize("register", [16, 32, 64])
def test_sanitizers_find_nothing_in_registers_of(register):
    """Each size of a register, by plain C++ where the processor lacks it."""
    flags = f"{fuzz.FLAGS} -DILM_PLUGINS_REGISTER={register}"
    with fuzz.sanitized(flags) as (path, env):
        command = [*fuzz.COMMAND, "--cases=500", f"--library={path}", "--instructions=default"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
