"""``python -m benchmarks.gpu``: its limits, its lock, and the table of its results."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

pytest.importorskip("seaborn", reason="needs the extra ilm_plugins[analysis]")

from benchmarks import gpu, report

#: Writes a result, starts a process of its own and never ends.
ENDLESS = """
import pathlib, subprocess, sys, time
pathlib.Path("result.json").write_text("{}")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid)
time.sleep(600)
"""
#: Writes when it began and when it ended to the file of its name.
SPAN = """
import pathlib, sys, time
begin = time.monotonic()
time.sleep(0.2)
pathlib.Path(sys.argv[1]).write_text(f"{begin} {time.monotonic()}")
"""


def part(code, *words, name="part", limit=60, alone=True):
    return gpu.Part(name, (sys.executable, "-c", code, *words), limit, alone)


def test_a_part_over_its_limit_leaves_what_it_has_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gpu.run(tmp_path, time.monotonic() + 600, part(ENDLESS, limit=5))
    assert "part: ended at its limit" in capsys.readouterr().out
    assert (tmp_path / "result.json").read_text() == "{}"
    child = int((tmp_path / "part.txt").read_text())
    wait_for(lambda: has_ended(child))


def test_a_part_ends_with_the_time_of_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin = time.monotonic()
    gpu.run(tmp_path, begin + 2, part(ENDLESS, limit=600))
    assert time.monotonic() - begin < 60


def test_a_part_does_not_start_after_the_end(tmp_path, capsys):
    gpu.run(tmp_path, time.monotonic(), part(SPAN, str(tmp_path / "span")))
    assert capsys.readouterr().out == "part: left out\n"
    assert not (tmp_path / "span").exists()


def test_parts_that_run_alone_do_not_overlap(tmp_path):
    end = time.monotonic() + 600
    with ThreadPoolExecutor() as pool:
        for name in "abc":
            pool.submit(gpu.run, tmp_path, end, part(SPAN, str(tmp_path / name), name=name))
    spans = sorted([*map(float, (tmp_path / name).read_text().split())] for name in "abc")
    for (_, ended), (begun, _) in pairwise(spans):
        assert ended <= begun


def test_the_files_of_a_folder_make_the_table_of_the_record(tmp_path):
    record = json.loads(report.RECORD_OF_GPU.read_text())
    del record["commits of steps"]
    (tmp_path / "machine.json").write_text(json.dumps(record["machine"]))
    for shape in report.SHAPES:
        rows = {
            setting: [row for row in rows if row["shape name"] == shape]
            for setting, rows in record["layers"].items()
        }
        result = {"rounds": record["rounds"], "layers": rows}
        (tmp_path / f"layers, {shape}.json").write_text(json.dumps(result))
    for way, norms in record["steps"].items():
        for norm, row in norms.items():
            result = {"way": way, "norm": norm, "peak bytes": 0, "kernels": {}, **row}
            (tmp_path / f"step, {way}, {norm}.json").write_text(json.dumps(result))
    found = report.collect(tmp_path)
    assert report.means(found) == report.means(record)
    assert report.maps(found) == report.maps(record)
    ways = sorted(record["steps"])
    expected = record | {"steps": {way: record["steps"][way] for way in ways}}
    assert report.gpu_steps(found) == report.gpu_steps(expected)


@pytest.mark.long
def test_every_part_ends_well_in_the_rehearsal(tmp_path, root):
    pytest.importorskip("mmengine", reason="needs OpenMMLab: make install-openmmlab")
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if ": exit status" in line]
    assert len(lines) == len([*gpu.parts(tmp_path, rehearse=True)])
    # pytest's status 5: all tests of CUDA are skipped.
    assert not [line for line in lines if ": exit status 0" not in line and line[:5] != "tests"]
    for way, norm in gpu.REHEARSED:
        assert json.loads((tmp_path / f"step, {way}, {norm}.json").read_text())["kernels"]


def wait_for(condition, seconds=30):
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
