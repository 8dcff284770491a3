"""The command compare on training scripts of a user's own."""

import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="needs the extra ilm_plugins[compare]")

from helpers import processes
from helpers.trainings import assert_gone
from ilm_plugins.__main__ import main
from ilm_plugins.cli import parsers
from ilm_plugins.cli.compare import plan_of
from ilm_plugins.comparison.command_source import PRINTED, CommandSource
from ilm_plugins.comparison.plan import FILES, Plan
from ilm_plugins.comparison.run import folders, outcomes, tasks
from ilm_plugins.comparison.script_metric import ScriptMetric
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.run.record import read_record
from ilm_plugins.parent_process import command_line

TRAIN = """
import json, sys
norm, seed, output = sys.argv[1:]
if norm == "broken":
    sys.exit("ValueError: no such norm")
print("learning")
value = {"BN": 70, "EN": 72.5}[norm] + int(seed) ** (2 if norm == "EN" else 1) / 10
with open(f"{output}/results.json", "w") as file:
    json.dump({"top1": value, "loss": 100 - value}, file)
"""
COMMAND = f"{sys.executable} train.py {{norm}} {{seed}} {{output}}"


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The commands that were started, in a folder with a script."""
    commands = []

    def start(words, file, variables):
        commands.append(shlex.join(words))
        env = {**os.environ, **variables}
        return processes.Process(command_line(words), stdout=file, stderr=file, env=env)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as --num-gpus 0 sets it
    monkeypatch.setattr(tasks, "start", start)
    monkeypatch.setattr(tasks, "PAUSE", 0.05)
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(TRAIN)
    return commands


def compare(*words, metric="top1:results.json", command=COMMAND):
    words = ["compare", "--command", command, *words, "--metric", metric, "--output", "out"]
    words += [] if "--seeds" in words else ["--seeds", "0"]
    return main([*words, "--num-gpus", "0"])


def plan(norms=("BN",), seeds=(0,), metric="top1:results.json", command=COMMAND):
    return Plan(CommandSource(command, ScriptMetric.of(metric)), norms, seeds, Path("out"))


def prepare(made):
    made.source.prepare(made)


def run(made, norm="BN", seed=0):
    """Make a run in this process."""
    return main(made.source.training(norm, seed, made.folder(norm, seed)))


def test_a_script_is_compared(started, capsys):
    made = plan(("BN", "EN"), (0, 1, 2))
    for seed in (1, 2):
        run(made, "BN", seed)
        run(made, "EN", seed)
    assert compare("BN", "EN", "--seeds", "0", "1", "2") == 0
    assert len(started) == 2  # of seed 0, as the others were finished
    page = Path("out/compare.md").read_text()
    assert "+2.57 [+2.15, +2.98]" in page
    assert page in capsys.readouterr().out
    assert Path("out/compare.png").is_file()
    record = read_record("out/EN/seed0")
    assert (record["seed"], record["metrics"]) == (0, {"": {"top1": 72.5}})
    assert Path("out/EN/seed0.log").read_text().endswith("learning\n")
    row = pd.read_csv("out/compare.csv", dtype={"commit": str}).iloc[3]  # may be 8859e0656710
    expected = ["EN", 0, "test", "top1", 72.5]
    assert [*row[:8]] == [*expected, *(record[key] for key in ("seconds", "commit", "device"))]


def test_a_run_that_fails_is_a_row_and_starts_again(started):
    """Its reason is the last line that it printed."""
    run(plan())
    assert compare("BN", "broken") == 0
    reason = "failed: ValueError: no such norm; see out/broken/seed0.log"
    assert f"- broken, seed 0: {reason}" in Path("out/compare.md").read_text()
    started.clear()
    compare("BN", "broken")
    (command,) = started
    assert "broken" in command


def test_a_run_that_is_stopped_and_continued_is_no_failure(started):
    """Ctrl-C in its second run: the report then tells of no failure and no repetition."""
    Path("train.py").write_text(f"""
import os, signal, time
if "EN" in __import__("sys").argv:
    os.kill({os.getpid()}, signal.SIGINT)
    time.sleep(300)
{TRAIN}""")
    assert compare("BN", "EN") == 128 + signal.SIGINT
    assert outcomes.failure(plan(("BN", "EN")), "EN", 0) == "stopped"
    Path("train.py").write_text(TRAIN)
    assert compare("BN", "EN") == 0
    assert "fail" not in Path("out/compare.md").read_text()


def test_a_changed_command_is_named(started, capsys):
    run(plan())
    plan().save_settings()
    assert compare("BN", "EN", command=COMMAND + " --lr 1") == 2
    error = capsys.readouterr().err
    assert f"out was begun with --command = {COMMAND!r}, not {COMMAND + ' --lr 1'!r}; " in error
    assert not started


@pytest.mark.parametrize(
    "edited", ["train.py", "model.py", "parts/blocks.py", "settings.yaml", "eval/__main__.py"]
)
def test_runs_of_edited_code_are_told_in_the_report(edited, started, capsys):
    """Of the script, of modules beside it, of settings, of a module by -m."""
    for path in ("parts", "eval"):
        Path(path).mkdir()
    Path("train.py").write_text("import model" + TRAIN.replace("norm, seed,", "norm, seed, *_,"))
    Path("model.py").write_text("from parts import blocks")
    for path in ("parts/blocks.py", "settings.yaml", "eval/__main__.py"):
        Path(path).touch()
    words = "{norm} {seed} -m eval --config=settings.yaml {output}"
    command = f"{sys.executable} train.py {words}"
    for seed in (0, 1, 2):
        run(plan(command=command), "BN", seed)
    with open(edited, "a") as file:
        file.write("\n# other code")
    assert compare("BN", "EN", "--seeds", "0", "1", "2", command=command) == 0
    folders = "out/BN/seed0, out/BN/seed1, out/BN/seed2"
    told = "Some runs are of other code than the present one; to repeat what it changes, remove "
    for text in (capsys.readouterr().out, Path("out/compare.md").read_text()):
        assert f"{told}{folders}, or give another output" in text


def test_links_in_a_comparisons_folder_are_not_written_through(started, tmp_path):
    Path("out/EN/seed0").mkdir(parents=True)
    plan().save_settings()
    links = ["compare.md", "compare.csv", "compare.png", "compare.html"]
    links += ["EN/seed0.log", "EN/seed0/record.json", f"EN/seed0/{PRINTED}"]
    for i, name in enumerate(links):
        Path(f"kept{i}").write_text("{}")
        Path("out", name).symlink_to(tmp_path / f"kept{i}")
    assert compare("BN", "EN") == 0
    assert [Path(f"kept{i}").read_text() for i in range(len(links))] == ["{}"] * len(links)


def test_a_run_folder_that_leads_elsewhere_is_refused(started, tmp_path, capsys):
    Path("out").mkdir()
    Path("elsewhere").mkdir()
    Path("out/EN").symlink_to(tmp_path / "elsewhere")
    assert compare("BN", "EN") == 2
    expected = "out/EN/seed0 leads out of out by a link; remove the link"
    assert expected in capsys.readouterr().err
    assert not [*Path("elsewhere").iterdir()]


def test_a_mistake_in_the_metric_needs_no_other_training(started, capsys):
    assert compare("BN", "EN", metric="top5:results.json") == 2
    message = "--metric top5:results.json:last: out/BN/seed0/results.json has no value of 'top5'; "
    assert message + "it has top1, loss" in capsys.readouterr().err
    assert len(started) == 1
    Path("train.py").write_text("raise SystemExit('trained again')")
    assert compare("BN", "BN2", metric="top1:results.json") == 0
    assert read_record("out/BN/seed0")["metrics"] == {"": {"top1": 70}}


def test_another_metric_of_finished_runs_is_read(started):
    for norm in ("BN", "EN"):
        for seed in (0, 1, 2):
            run(plan(("BN", "EN"), (0, 1, 2)), norm, seed)
    assert compare("BN", "EN", "--seeds", "0", "1", "2", metric="loss:results.json:min") == 0
    assert not started
    lines = Path("out/compare.md").read_text().splitlines()
    (sentence,) = [line for line in lines if line.startswith("- EN: ")]
    assert sentence.startswith("- EN: better. Gain: +2.57 (95 %: +2.15 to +2.98), p = 0.001.")
    assert any(
        "by loss of results.json, the min of each run: lower is better." in line for line in lines
    )


def test_the_value_is_kept_when_the_scripts_files_are_removed(started):
    run(plan())
    Path("out/BN/seed0/results.json").unlink()
    prepare(plan())
    with pytest.raises(UserError, match=r"has no file 'results\.json'"):
        prepare(plan(metric="loss:results.json"))
    assert read_record("out/BN/seed0")["metrics"] == {"": {"top1": 70}}
    assert folders.is_complete(Path("out/BN/seed0"))


def test_a_script_that_writes_no_metric_is_a_failure_of_its_run(started, capsys):
    run(plan())
    Path("train.py").write_text("print('nothing to do')")
    run(plan(("BN", "EN")), "EN")
    assert "out/EN/seed0 has no file 'results.json'; it has " in capsys.readouterr().err
    assert not folders.is_complete(Path("out/EN/seed0"))
    plan().source.check_ended(plan(("BN", "EN")).folders)  # as BN has one, others go on


def test_what_a_script_prints_is_a_file_of_its_folder(started):
    Path("train.py").write_text("print('Test:  Acc@1 12.5'); print('Test:  Acc@1 13.5')")
    run(plan(metric=f"Acc@1:{PRINTED}"))
    assert read_record("out/BN/seed0")["metrics"] == {"": {"Acc@1": 13.5}}


#: A script that appends to its own log, and stops after two of three epochs the first time.
STOPPED = """
import sys
from pathlib import Path
norm, seed, output = sys.argv[1:]
log, done = Path(output, "log.txt"), Path(output, "done")
begun = done.exists()
for value in (0.6,) if begun else (0.7, 0.9):
    with log.open("a") as file:
        file.write(f"acc: {value}\\n")
    print(f"printed: {value}")
done.touch()
sys.exit(not begun)
"""


@pytest.mark.parametrize("metric", ["acc:log.txt:max", f"printed:{PRINTED}:max"])
def test_a_script_that_continues_keeps_its_log_and_what_it_printed(started, metric, capfd):
    Path("train.py").write_text(STOPPED)
    assert [run(plan(metric=metric)) for _ in range(2)] == [1, 0]
    assert [*read_record("out/BN/seed0")["metrics"][""].values()] == [0.9]
    assert Path("out/BN/seed0/log.txt").read_text() == "acc: 0.7\nacc: 0.9\nacc: 0.6\n"
    assert capfd.readouterr().out.count("printed: 0.9") == 1


def test_a_scripts_own_record_is_not_replaced(started, capsys):
    Path("train.py").write_text(TRAIN.replace("results.json", "record.json"))
    assert run(plan()) == 2
    told = "out/BN/seed0/record.json is no record of a run; give your own file another name"
    assert told in capsys.readouterr().err
    assert '"top1": 70.0' in Path("out/BN/seed0/record.json").read_text()


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_users_own_is_not_replaced_by_the_report(started, name, capsys):
    Path("out").mkdir()
    Path("out", name).write_text("mine")
    assert compare("BN", "EN") == 2
    told = f"out has {name}, but no compare.json; move your own files, or give another"
    assert told in capsys.readouterr().err
    assert Path("out", name).read_text() == "mine"
    assert not started


def test_words_are_split_as_a_shell_does_and_run_without_one():
    made = plan(command="sh -c 'echo $1 {{}}' \"a b\" k={norm} {seed} {output}")
    words = ["sh", "-c", "echo $1 {}", "a b", "k=E N; ls", "3", os.path.abspath("out/E-N-ls/seed3")]
    training = made.source.training("E N; ls", 3, Path("out/E-N-ls/seed3"))
    assert training[training.index("--") + 1 :] == words


@pytest.mark.parametrize(
    "command, message",
    [
        (
            "train {norm} {seed} {out}",
            "unknown placeholder {out}; give {norm}, {seed} and {output}",
        ),
        ("train {norm} {seed} {output} {}", "Format string contains positional fields; correct"),
        ("train {norm.x} {seed} {output}", "'str' object has no attribute 'x'; correct it"),
        ("train {seed} {output}", "--command lacks {norm}; give {norm}, {seed}, {output}"),
        ("train {norm} {seed}", "--command lacks {output}; give {norm}, {seed}, {output}"),
        ("train {norm} {output}", "--command lacks {seed}; give {norm}, {seed}, {output}"),
        ("train 'a {norm}", "No closing quotation; correct it"),
        ("train {norm} {", "Single '{' encountered in format string; correct it"),
        ("", "--command '': it is empty"),
    ],
)
def test_a_mistake_in_a_command_is_named(command, message):
    with pytest.raises(UserError) as caught:
        plan(seeds=(0, 1), command=command)
    assert message in str(caught.value)


def test_an_arm_adds_words_to_the_command_and_is_told_by_folder_and_page(started):
    Path("train.py").write_text(
        TRAIN.replace("norm, seed, output =", "norm, seed, output, *more =").replace(
            "value = ", "value = len(more) + "
        )
    )
    assert compare("BN", "EN", "--arm", "BN+fast", "BN", "--fast") == 0
    record = read_record("out/BN+fast/seed0")
    assert record["metrics"] == {"": {"top1": 71}}
    assert record["command"].endswith(
        "train.py BN 0 " + os.path.abspath("out/BN+fast/seed0 --fast")
    )
    assert read_record("out/BN/seed0")["metrics"] == {"": {"top1": 70}}
    assert "--fast" in Path("out/compare.html").read_text()
    assert compare("BN", "EN", "--arm", "BN+fast", "BN", "--slow") == 2


@pytest.mark.parametrize("words, higher", [((), True), (("--lower-is-better",), False)])
def test_a_lower_metric_of_a_config_may_be_better(words, higher, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as --num-gpus 0 sets it
    args = parsers.compare(["config.py", "BN", "EN", "--num-gpus", "0", *words])
    assert plan_of(args).higher_is_better is higher


def test_a_command_needs_a_metric(started, capsys):
    assert main(["compare", "--command", COMMAND, "BN", "EN"]) == 2
    assert "--command needs --metric NAME:FILE[:RULE], such as " in capsys.readouterr().err


def test_a_dry_run_prints_the_scripts_commands(started, capsys):
    assert compare("BN", "E N", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    folder = os.path.abspath("out/E-N/seed0")
    assert lines[1] == f"{sys.executable} train.py 'E N' 0 {folder}"
    assert not Path("out").exists()


SLEEP = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
Path("children").write_text(str(child.pid))
time.sleep(300)
"""


def start(file):
    """Start a run; return its process as soon as the script has written a file."""
    with open("log", "w") as log:
        words = plan().source.training("BN", 0, Path("out/BN/seed0"))
        process = processes.Process(command_line(words), stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while not (Path(file).is_file() and Path(file).read_text()):
        assert process.poll() is None and time.monotonic() < deadline, Path("log").read_text()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_of_a_script_end_with_its_run(started, ending):
    """Also the processes that the script has started."""
    Path("train.py").write_text(SLEEP)
    process = start("children")
    os.kill(process.pid, ending)
    assert process.wait(30) == 128 + ending
    assert_gone([Path("children").read_text()])


def test_a_run_waits_for_the_end_of_its_script(started):
    """Which may write a checkpoint after SIGTERM."""
    Path("train.py").write_text(
        "import signal, sys, time\n"
        "def end(*_):\n    time.sleep(1)\n    open('ended', 'w')\n    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\nopen('begun', 'w').write('x')\ntime.sleep(300)"
    )
    process = start("begun")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert Path("ended").exists()


def test_a_script_ends_with_a_run_that_is_killed(started):
    Path("train.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(300)"
    )
    process = start("pid")
    os.kill(process.pid, signal.SIGKILL)
    assert_gone([Path("pid").read_text()])
