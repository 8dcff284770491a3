"""A Slurm of one machine: sbatch, srun, sacct, scancel and scontrol, by the name it is called by.

Its jobs are in the folder SLURM_STAND_IN: a folder NUMBER_INDEX for each, with its state and times
of start. Signals go to all processes of srun's command, and at the end to the batch script, too.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

ROOT = Path(os.environ["SLURM_STAND_IN"])


def sbatch(script):
    text = Path(script).read_text()
    found = re.search(r"--array=0-(\d+)%(\d+)", text)
    count, at_once = (int(found[1]) + 1, int(found[2])) if found else (1, 1)
    number = str(1001 + len([*ROOT.glob("*.sh")]))
    copy = ROOT / f"{number}.sh"
    copy.write_text(text)
    names = [f"{number}_{i}" if found else number for i in range(count)]
    for name in names:
        (ROOT / name).mkdir()
        (ROOT / name / "state").write_text("PENDING")
    controller = [sys.executable, __file__, "controller", str(copy), str(at_once), *names]
    with open(os.devnull, "w") as null:
        subprocess.Popen(controller, stdout=null, stderr=null, start_new_session=True)
    print("Submitted batch job", number)


def controller(script, at_once, *names):
    """Run the jobs of an array, a number of them at once; again where one is requeued."""
    waiting, running = [*names], {}
    while waiting or running:
        while waiting and len(running) < int(at_once):
            name = waiting.pop(0)
            if state_of(name) == "PENDING":
                running[name] = start(script, name)
        for name, process in [*running.items()]:
            if process.poll() is None:
                continue
            del running[name]
            if state_of(name) == "REQUEUED":
                end(name, [signal.SIGKILL])
                (ROOT / name / "state").write_text("PENDING")
                waiting.append(name)
            elif state_of(name) == "RUNNING":
                state = "FAILED" if process.returncode else "COMPLETED"
                (ROOT / name / "state").write_text(state)
        time.sleep(0.05)


def start(script, name):
    number, _, index = name.partition("_")
    variables = {"SLURM_JOB_ID": str(int(number) + 5000 + int(index or 0)), "SLURM_NTASKS": "1"}
    if index:
        variables |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
    else:
        variables["SLURM_JOB_ID"] = number
    env = {**os.environ, **variables, "SLURM_PROCID": "0", "SLURM_JOB_NUM_NODES": "1"}
    with (ROOT / name / "log").open("a") as log:
        process = subprocess.Popen(
            ["bash", script], env=env, stdout=log, stderr=log, start_new_session=True
        )
    (ROOT / name / "script").write_text(str(process.pid))
    with (ROOT / name / "starts").open("a") as file:
        print(time.time(), file=file)
    (ROOT / name / "state").write_text("RUNNING")
    return process


def srun(*words):
    """Become the command, with the files of --output and --error."""
    job = os.environ["SLURM_JOB_ID"]
    array, index = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    marks = {"%A": array or "", "%a": index or "", "%j": job, "%t": "0"}
    command = [*words]
    while command[0].startswith("--"):
        option = command.pop(0)
        if option in ("--output", "--error"):
            path = command.pop(0)
            for mark, value in marks.items():
                path = path.replace(mark, value)
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(file, 1 if option == "--output" else 2)
    os.setsid()
    (ROOT / (f"{array}_{index}" if array else job) / "command").write_text(str(os.getpid()))
    os.execvp(command[0], command)


def sacct(*words):
    print("JobID|State|NodeList")
    for number in [after for word, after in pairwise(words) if word == "-j"]:
        for folder in [*ROOT.glob(f"{number}_*"), *ROOT.glob(number)]:
            print(f"{folder.name}|{state_of(folder.name)}|node1")


def scancel(name, *options):
    if options:
        number = getattr(signal, f"SIG{options[1].removeprefix('SIG')}")
        os.killpg(int((ROOT / name / "command").read_text()), number)
        return
    if state_of(name) in ("PENDING", "RUNNING", "REQUEUED"):
        (ROOT / name / "state").write_text("CANCELLED by 1000")
        end(name, [signal.SIGTERM, signal.SIGKILL])


def end(name, signals):
    for number in signals:
        for path in (ROOT / name / "command", ROOT / name / "script"):
            with suppress(ProcessLookupError, FileNotFoundError):
                os.killpg(int(path.read_text()), number)
        time.sleep(0.5)


def scontrol(action, name):
    assert action == "requeue"
    (ROOT / name / "state").write_text("REQUEUED")


def state_of(name):
    return (ROOT / name / "state").read_text()


if __name__ == "__main__":
    called = Path(sys.argv[0]).name
    words = sys.argv[1:]
    if called == "slurm.py":
        called, *words = words
    globals()[called](*words)
