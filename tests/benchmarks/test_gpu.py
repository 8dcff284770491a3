"""``python -m benchmarks.gpu``: its limits, its order, what it needs, and its tables."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch

pytest.importorskip("seaborn", reason="needs seaborn: requirements/test.txt")

from benchmarks import gpu
from ilm_plugins.ops.engine.backends import has_triton

#: Starts a process of its own, writes its number and never ends.
ENDLESS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid)
time.sleep(600)
"""
#: Writes when it began and when it ended to the file of its name.
SPAN = """
import pathlib, sys, time
begin = time.monotonic()
time.sleep(0.3)
pathlib.Path(sys.argv[1]).write_text(f"{begin} {time.monotonic()}")
"""
#: Writes a file with some text.
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
#: A command with one endless part.
COMMAND = f"""
from benchmarks import gpu
gpu.kernels = lambda *_: []
gpu.needs.NEEDS = {{"all": (), "table": ("pandas",)}}
gpu.write_pairs = lambda *_: None
gpu.parts = lambda *_: [gpu.Part("part", (gpu.sys.executable, "-c", {ENDLESS!r}))]
gpu.main()
"""


def part(code, *words, name="part"):
    return gpu.Part(name, (sys.executable, "-c", code, *map(str, words)))


@pytest.fixture
def folder(tmp_path):
    """A folder of results, so far without any."""
    machine = {"device": "a GPU", "torch": "2", "commit": "0", "images": 64}
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    return tmp_path


def result(seconds, norm="EN"):
    return json.dumps({"way": "eager", "norm": norm, "seconds": seconds, "peak bytes": 2**30})


def test_a_part_that_fails_hangs_or_is_cut_leaves_its_output_and_the_others_results(folder, capsys):
    parts = [
        part("raise SystemExit('too little memory')", name="fails"),
        part(WRITE, folder / "step, eager, BN.json", result(0.03, "BN")[:20], name="is cut"),
        part(ENDLESS, name="hangs"),
        part(WRITE, folder / "step, eager, EN.json", result(0.04), name="works"),
    ]
    assert gpu.run(parts, set(), folder, math.inf, limit=5) == []
    lines = [line.partition(", ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        *("fails: exit status 1", "is cut: exit status 0", "hangs: ended at its limit"),
        "works: exit status 0",
    ]
    assert (folder / "fails.txt").read_text() == "too little memory\n"
    wait_for(lambda: has_ended(int((folder / "hangs.txt").read_text())))
    assert "| EN / BN | 40.0 | 1.0 GiB |" in (folder / "table.md").read_text()


def test_what_the_time_of_all_does_not_reach_is_left_out(folder):
    begin = time.monotonic()
    late = part(SPAN, folder / "late", name="late")
    assert gpu.run([part(ENDLESS), late], set(), folder, begin + 2, limit=600) == ["late"]
    assert time.monotonic() - begin < 60
    assert not (folder / "late").exists()


@pytest.mark.parametrize("module", ["torch", "wrapt"])
def test_a_python_without_torch_ends_with_one_line_that_installs_what_is_missing(root, module):
    code = "import runpy, sys; sys.modules[sys.argv[1]] = None; runpy.run_module('benchmarks.gpu')"
    command = [sys.executable, "-c", code, module]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    start, words = line.split(": pip install ")
    assert start == f"error: {sys.executable} lacks {module}"
    assert module in words.split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_to_the_command_ends_its_part(tmp_path, root, number):
    words = [sys.executable, "-c", COMMAND, "--rehearse", "--output", str(tmp_path)]
    command = subprocess.Popen(words, cwd=root, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "part.txt").exists() and (tmp_path / "part.txt").read_text())
    command.send_signal(number)
    assert command.communicate(timeout=60)[1].endswith(f"{tmp_path} has the results so far\n")
    wait_for(lambda: has_ended(int((tmp_path / "part.txt").read_text())))


@pytest.mark.parametrize("at_once", [1, 2])
def test_parts_overlap_only_where_they_may(folder, at_once):
    names = "abcd"
    parts = [part(SPAN, folder / name, name=name) for name in names]
    gpu.run(parts, set(), folder, math.inf, limit=60, at_once=at_once)
    spans = sorted([*map(float, (folder / name).read_text().split())] for name in names)
    most = max(sum(b <= begin < e for b, e in spans) for begin, _ in spans)
    assert most <= at_once
    if at_once == 1:
        assert all(ended <= begun for (_, ended), (begun, _) in pairwise(spans))


@pytest.mark.skipif(not has_triton(), reason="needs Triton 3.6 or newer")
@pytest.mark.skipif(torch.cuda.is_available(), reason="its own driver would be asked")
def test_kernels_are_compiled_for_a_gpu_that_is_not_there(tmp_path, monkeypatch):
    from benchmarks import ahead, layers

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(layers, "SHAPES", {"tiny": (2, 32, 4, 4)})
    monkeypatch.setattr(layers, "LAYERS_OF_CUDA", ("ILMGN",))
    monkeypatch.setattr(layers, "SETTINGS_OF_CUDA", ("float32",))
    ahead.compile_kernels("tiny", 2, 80, 108)
    texts = [file.read_text() for file in tmp_path.rglob("*.ptx")]
    assert len(texts) == 2  # forward and backward
    assert all(".target sm_80" in text for text in texts)


@pytest.mark.long
def test_every_part_ends_well_in_the_rehearsal(tmp_path, root):
    pytest.importorskip("mmengine", reason="needs OpenMMLab: make install-openmmlab")
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if ": exit status" in line]
    assert len(lines) == 1 + len([*gpu.parts(tmp_path, rehearse=True)])
    # pytest's status 5: all tests of CUDA are skipped.
    assert not [line for line in lines if ": exit status 0" not in line and line[:5] != "tests"]
    for way, norm in gpu.REHEARSED:
        assert json.loads((tmp_path / f"step, {way}, {norm}.json").read_text())["kernels"]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def has_ended(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:  # nobody may have waited for it
        return file.read().rpartition(")")[2].split()[0] == "Z"
