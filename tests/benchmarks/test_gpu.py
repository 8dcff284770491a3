"""The command for a machine with a GPU: its steps, how it continues, and the whole on the CPU."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import defects
from benchmarks import gpu, layers, measure, report
from benchmarks.gpu import Step
from faults import wait_until_gone
from ilm_plugins.reproduction import registry


def python(code, **options):
    """A step that runs a line of Python."""
    return Step("step", (sys.executable, "-c", code), **options)


@pytest.fixture
def perform(tmp_path):
    """Perform a step; options: minutes that are left."""

    def perform(step, minutes=float("inf")):
        deadline = time.monotonic() + 60 * minutes
        return gpu.perform(step, tmp_path, dict(os.environ), deadline)

    return perform


def test_steps_name_what_there_is(root, tmp_path):
    assert tuple(layers.SHAPES) == gpu.MAPS
    for images, table, cells, rehearsed, *options in gpu.TRAININGS.values():
        found = registry.find(table, cells)
        assert rehearsed in {cell.name for cell in found}
        if options:
            assert options == ["--augment-batches"] and images == "cifar10_jpeg"
            assert all("cifar10" in cell.config for cell in found)
    for rehearse in ("", "--rehearse"):
        args = gpu.parse(["--bundle", str(tmp_path), *rehearse.split()])
        steps = gpu.steps(args)
        assert len({step.name for step in steps}) == len(steps)
        files = {word for step in steps for word in step.command if word.startswith("tests/")}
        assert len(files) == 4 and all((root / file).is_file() for file in files)


def test_a_step_that_is_done_has_its_last_lines_and_its_result(perform, tmp_path):
    file = tmp_path / "result.json"
    code = f"print(*range(30), sep='\\n'); open({str(file)!r}, 'w').write('[1]')"
    entry = perform(python(code, result=file))
    assert (entry["status"], entry["exit"], entry["result"]) == ("done", 0, [1])
    assert entry["last"] == [str(i) for i in range(10, 30)]
    assert (tmp_path / "step.log").read_text().splitlines()[0] == "0"


def test_a_step_that_fails_has_its_error_alone(perform):
    perform(python("print('former')"))
    entry = perform(python("raise SystemExit('reason')", result=Path("none")))
    assert (entry["status"], entry["exit"], entry["last"]) == ("failed", 1, ["reason"])


@pytest.mark.parametrize("needs", ["no-such-program", Path("no", "folder")])
def test_a_step_without_what_it_needs_is_left_out(perform, needs):
    entry = perform(python("print()", needs=needs))
    assert (entry["status"], entry["last"]) == ("missing", [f"needs {needs}"])


def test_tests_that_are_all_skipped_are_missing(perform, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    file = tmp_path / "test_it.py"
    file.write_text("import pytest\npytest.skip('needs a GPU', allow_module_level=True)\n")
    words = "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(file)
    assert perform(Step("tests", (sys.executable, *words)))["status"] == "missing"


def test_at_the_deadline_a_step_and_its_children_are_ended(perform, tmp_path):
    child = tmp_path / "child"
    command = "sh", "-c", f"sleep 60 & echo $! > {child}; wait"
    entry = perform(Step("step", command), minutes=1 / 60)
    assert (entry["status"], entry["exit"]) == ("stopped", -15)
    wait_until_gone([int(child.read_text())], seconds=30)


def test_a_step_that_takes_too_long_has_failed(perform, monkeypatch):
    monkeypatch.setattr(gpu, "LIMIT", 0.2 / 60)
    assert perform(Step("step", ("sleep", "60")))["status"] == "failed"


@pytest.mark.parametrize("minutes, status", [(9, "done"), (0.4, "stopped")])
def test_a_training_gets_the_minutes_that_are_left(perform, minutes, status):
    command = sys.executable, "-c", "import sys; print(sys.argv[1])", "{minutes}"
    entry = perform(Step("training", command), minutes)
    assert entry["status"] == status
    assert float(entry["last"][0]) == pytest.approx(max(0, minutes - gpu.MARGIN), abs=0.1)


def test_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    count, result = tmp_path / "count", tmp_path / "result.json"
    part = results(layers={"float32": []})
    result.write_text(json.dumps(part))
    once = f"open({str(count)!r}, 'a').write('1')"
    steps = [
        python(once, result=result)._replace(name="first"),
        python(f"import os; assert os.path.exists({str(tmp_path / 'mended')!r})"),
        python(once)._replace(name="other"),
    ]
    monkeypatch.setattr(gpu, "prepare", lambda args: dict(os.environ))
    monkeypatch.setattr(gpu, "steps", lambda args: steps)
    words = ["--bundle", str(tmp_path), "--output", str(tmp_path), "--only", "first|step"]
    assert gpu.main([*words, "--minutes", "0"]) == 0
    assert "0 minutes are over; the same command continues" in capsys.readouterr().out
    assert gpu.main(words) == 1
    (tmp_path / "mended").touch()
    assert gpu.main(words) == 0
    assert count.read_text() == "1"
    found = [(entry["step"], entry["status"]) for entry in gpu.read(tmp_path / "record.jsonl")]
    assert found == [("first", "done"), ("step", "failed"), ("step", "done")]
    assert json.loads((tmp_path / "benchmark.json").read_text()) == part


def error(capsys, *words):
    """The one line by which the command ends."""
    with pytest.raises(SystemExit) as stop:
        gpu.main(list(words))
    assert "\n" not in stop.value.code
    return stop.value.code


def test_what_is_missing_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    words = "--bundle", str(tmp_path / "none"), "--output", str(tmp_path)
    assert f"{tmp_path / 'none'}: no such folder; write it by: make bundle" in error(capsys, *words)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    line = error(capsys, "--bundle", str(tmp_path), "--output", str(tmp_path))
    assert line == "error: torch sees no GPU here; --rehearse tries the sequence without one"
    monkeypatch.setitem(gpu.COMPILED, "no_such_module", "no-such-package")
    assert f"{sys.executable} lacks no-such-package, " in error(capsys, *words)


def results(**parts):
    machine = {"device": "GPU", "torch": "2", "commit": "abc"}
    none = {"layers": {}, "compiled": [], "models": [], "training": {}}
    return {"machine": machine, "rounds": 9, **none, **parts}


def row_of(shape, ratio, copy, forward=1, both=3):
    return {
        "layer": "ILMGN",
        "shape name": shape,
        "launches": {"forward": forward, "both": both},
        "forward": {"over copy": [copy]},
        "both": {"over baseline": [ratio], "over Liger": [ratio / 2]},
    }


def test_results_of_several_commands_are_joined():
    one, two = row_of("box head", 1, 1), row_of("FPN", 1, 1)
    parts = [results(layers={"float32": [row]}) for row in (one, two)]
    whole = report.joined([*parts, results(models=[1]), results(compiled=[2])])
    assert whole == results(layers={"float32": [one, two]}, models=[1], compiled=[2])
    other = {**whole["machine"], "commit": "def"}
    whole = report.joined([whole, {**whole, "machine": other}])
    assert whole["machine"] == {"device": "GPU", "torch": "2", "commit": "abc, def"}


def test_layers_and_models_run_by_tritons_kernels_or_fail(tmp_path):
    commands = {s.name: s.command for s in gpu.steps(gpu.parse(["--bundle", str(tmp_path)]))}
    forced = {name for name, words in commands.items() if "ILM_PLUGINS_BACKEND=triton" in words}
    assert forced == {f"benchmark: {name}" for name in (*gpu.MAPS, "models")}


def test_a_rehearsal_has_a_record_of_its_own(tmp_path):
    words = ["--bundle", str(tmp_path), "--output", str(tmp_path / "gpu")]
    real, rehearsed = gpu.parse(words), gpu.parse([*words, "--rehearse"])
    assert real.output == tmp_path / "gpu" and rehearsed.output == real.output / "rehearsal"


@pytest.mark.parametrize("name, index", [("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_is_selected_by_any_name(name, index, monkeypatch):
    found = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", found.append, raising=False)
    measure.select(torch.device(name))
    assert found == [index]


def test_a_gpus_time_begins_after_its_cache_is_overwritten(monkeypatch):
    events = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            events.append("event")

        def elapsed_time(self, end):
            return 2.0

    cache = SimpleNamespace(zero_=lambda: events.append("overwrite"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    monkeypatch.setattr(measure, "_larger_than_a_cache", lambda: cache)
    assert measure.device(lambda: events.append("run")) == 0.002
    assert events == ["wait", "overwrite", "event", "run", "event", "wait"]


def test_targets():
    rows = [row_of("box head", 0.5, 1.25, 1, 4), row_of("FPN", 2, 1.25)]
    table = report.targets(results(layers={"float32": rows}))
    assert "| ILMGN, float32: over plain | 1.0 | 0.8 | 1.00 | 0.50 |" in table
    assert "| ILMGN, float32: of a copy's bandwidth | 80 % | 90 % | 80 % | 80 % |" in table
    assert "| ILMGN, float32: launches | 1, 2 |  |  | 1, 3 |" in table
    assert "| ILMGN, channels last: over plain | 0.7 | 0.5 | not measured | not measured |" in table


def test_launches_are_those_of_kernels(monkeypatch):
    on_gpu, on_cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    names = ("kernel", on_gpu), ("Memset (Device)", on_gpu), ("aten::add", on_cpu), ("k", on_gpu)
    events = [SimpleNamespace(name=name, device_type=device) for name, device in names]
    record = nullcontext(SimpleNamespace(events=lambda: events))
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert measure.launches(lambda: None) == 2


#: What a machine with a GPU has, beside nvidia's packages.
OF_MACHINE = (
    *("torch", "torchvision", "triton", "numpy", "opencv-python-headless", "matplotlib", "PyYAML"),
    *("pillow", "pip", "setuptools", "sympy", "mpmath", "networkx", "Jinja2", "MarkupSafe"),
    *("filelock", "fsspec", "typing_extensions", "contourpy", "cycler", "fonttools", "kiwisolver"),
    *("pyparsing", "python-dateutil", "six"),
)


@pytest.fixture
def machine(tmp_path):
    """A Python that has these packages alone, by links to this environment's; its path.

    Nothing may be installed there: it would replace the files behind the links.
    """
    folder = tmp_path / "machine"
    create = sys._base_executable, "-m", "venv", "--without-pip", folder
    subprocess.run(create, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in importlib.metadata.distributions():
        if package.name in OF_MACHINE or package.name.startswith(("nvidia-", "cuda-")):
            for name in {Path(str(file)).parts[0] for file in package.files} - {
                "..",
                "__pycache__",
            }:
                if not (site / name).exists():  # several have files in "nvidia"
                    (site / name).symlink_to(package.locate_file(name))
    return folder / "bin" / "python"


@pytest.mark.wide
def test_the_sequence_from_the_bundle_alone(machine, tmp_path):
    from ilm_plugins.reproduction import miniature

    source, images, bundle = (tmp_path / name for name in ("source", "images", "bundle"))
    source.mkdir()
    defects.copy(source)
    miniature.write_packed(images / "cifar10_jpeg", ("train", "test"))
    (images / "facades").mkdir()
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MAKEFLAGS")}

    def make(*words, **variables):
        command = "make", *words, f"BUNDLE={bundle}"
        options = {"cwd": source, "env": clean | variables, "capture_output": True, "text": True}
        return subprocess.run(command, **options)

    made = make("bundle", f"PYTHON={sys.executable}", f"DATA={images}")
    if "No matching distribution" in made.stderr:
        pytest.skip(f"needs a package index: {made.stderr[-200:]}")
    assert made.returncode == 0, made.stderr[-3000:]
    wheels = list((bundle / "wheels").iterdir())
    assert all(wheel.name.endswith("-none-any.whl") for wheel in wheels)
    assert sum(wheel.stat().st_size for wheel in wheels) < 10e6

    only = "machine|tests|benchmark|ResNet-20|Facades"  # the other trainings are of the same kind
    options = f"GPU=--rehearse --only '{only}' --output {tmp_path / 'output'}"
    offline = {"PIP_INDEX_URL": "https://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull}
    done = make("gpu", f"PYTHON={machine}", options, **offline)
    assert done.returncode == 0, done.stdout + done.stderr
    output = tmp_path / "output" / "rehearsal"
    entries = {entry["step"]: entry for entry in gpu.read(output / "record.jsonl")}
    missing = {name for name, entry in entries.items() if entry["status"] == "missing"}
    of_gpu = {"the host never waits", "CUDA graphs", "backends agree", "properties"}
    assert {name.removeprefix("tests: ") for name in missing} - {"memcheck", "racecheck"} == of_gpu
    assert {entry["status"] for entry in entries.values()} == {"missing", "done"}
    assert "mmpretrain   1.3.6" in entries["machine"]["last"]
    assert "2 passed" in entries["tests: kernels"]["last"][-1]
    for name in ("ResNet-20", "Facades"):
        assert "(miniature" in entries[f"training: {name}"]["last"][-1]
    measured = json.loads((output / "benchmark.json").read_text())
    assert {row["layer"] for row in measured["layers"]["float32"]} == set(layers.BASELINES)
    assert measured["models"]
