"""``python -m benchmarks.gpu``: a part that fails, and a rehearsal of all."""

import json
import math
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("seaborn", reason="needs seaborn: requirements/test.txt")

from benchmarks import gpu

#: Starts a process of its own, writes its number and never ends.
ENDLESS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid)
time.sleep(600)
"""
#: Writes a file with some text.
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


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
