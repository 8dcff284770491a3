"""The compiled library: its sources, its symbols, its options, and what it writes to."""

import shutil
import subprocess
from array import array
from functools import partial
from pathlib import Path

import pytest
import torch

from equations.cases import assert_exact, inputs, needs_kernels, randomized
from helpers import fuzz
from ilm_plugins import NORMS
from ilm_plugins.cli import environment
from ilm_plugins.ops import cpu
from ilm_plugins.ops.engine.cpu import library

CPU, FOLDER = Path(cpu.__file__).parent, library.FOLDER
SOURCES = sorted(FOLDER.rglob("*.[ch]pp"))
COMPILER = shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@needs_compiler
@pytest.mark.wide
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_each_source_compiles_alone(path):
    command = COMPILER, "-std=c++17", "-fsyntax-only", "-x", "c++", str(path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


@needs_kernels
def test_options_that_the_library_cannot_read_are_refused(monkeypatch):
    layer, describe = NORMS["SN"](8), cpu._description
    found = describe(layer.describe(), 8, 8)
    longer = found._replace(fields=found.fields + array("d", [3]))
    monkeypatch.setattr(cpu, "_description", lambda *_: longer)
    with pytest.raises(RuntimeError, match="cannot read the options of its network; compare"):
        layer(torch.ones(2, 8, 3))


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
def test_a_library_of_the_same_sources_is_loaded(other_sources):
    assert cpu.load_problem() is None


@needs_kernels
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_library_compiled_before_a_source_changed_is_refused(path, other_sources):
    with (other_sources / path.relative_to(FOLDER)).open("a") as file:
        file.write("\n")
    message = r"kernels.so was compiled from other sources .*; run 'pip install -e \.'"
    with pytest.raises(RuntimeError, match=message):
        NORMS["ILMGN"](64)(torch.ones(1, 64, 3, 3))


@needs_kernels
def test_a_library_without_a_function_is_refused():
    with pytest.raises(RuntimeError, match="compiled from other sources"):
        library.functions("float", "of another version")


@needs_kernels
def test_no_function_has_the_name_of_data_in_earlier_libraries():
    """Such a library would be called before it is known to be stale."""
    exported = [name for name in symbols("--dynamic", "--defined-only") if "ilm_plugins" in name]
    assert exported
    assert all(name.startswith("ilm_plugins_find_") for name in exported)


@needs_kernels
def test_the_environments_report_tells_a_stale_library(other_sources):
    (other_sources / "engine/cpu/loops.hpp").unlink()
    assert environment._describe_kernels().startswith(f"cannot be used: {library.LIBRARY} was")


# ---- memory

OVERFLOWS = """
#include "{folder}/arena.hpp"
int main()
{{
    Memory<float> memory(256);
    Arena<float> arena(memory.at);
    float *first = arena.take(5), *second = arena.take(7);
    {statement};
    return 0;
}}
"""


@needs_compiler
@pytest.mark.parametrize(
    "statement, line", [("second[6] = 1", None), ("first[5] = 1", 7), ("second[-1] = 1", 7)]
)
def test_a_checked_build_finds_a_write_beside_an_array(tmp_path, statement, line):
    source, program = tmp_path / "overflows.cpp", tmp_path / "overflows"
    source.write_text(OVERFLOWS.format(folder=CPU, statement=statement))
    command = COMPILER, "-std=c++17", "-DILM_PLUGINS_CHECKED", "-o", str(program), str(source)
    subprocess.run(command, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    found = f"overflows.cpp:{line}: the array that is taken here overflows" in done.stderr
    assert (done.returncode == 0, found) == ((True, False) if line is None else (False, True))


@needs_compiler
@pytest.mark.wide
def test_sanitizers_find_nothing_in_random_cases():
    with fuzz.sanitized() as (path, env):
        command = [*fuzz.COMMAND, "--seconds=20", f"--library={path}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@needs_compiler
@pytest.mark.long
@pytest.mark.parametrize("register", [16, 32, 64])
def test_sanitizers_find_nothing_in_registers_of(register):
    """Each size of a register, by plain C++ where the processor lacks it."""
    flags = f"{fuzz.FLAGS} -DILM_PLUGINS_REGISTER={register}"
    with fuzz.sanitized(flags) as (path, env):
        command = [*fuzz.COMMAND, "--cases=500", f"--library={path}", "--instructions=default"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
