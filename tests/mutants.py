"""How many small defects in the package the tests find: ``make mutants ROOM=surgery``.

mutmut changes one place of the code at a time, and runs the tests that reach the changed function.
The mutants are drawn by a seed, the tests are a room's everyday ones. ``tests/mutants.csv`` has a
line for each room, ``output/mutants/ROOM/survivors.diff`` the changes that no test noticed.
"""

import argparse
import csv
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests" / "mutants.csv"
PACKAGE = "ilm_plugins"
#: For each room: the files that are changed, and the tests that may notice.
ROOMS = {
    "layers": (
        ["layers/*"],
        ["equations", "layers", "contract.py", "reproduction/test_layers.py"],
    ),
    "engine": (["ops/engine/*", "ops/networks/*/spec.py"], ["ops", "equations", "layers"]),
    "surgery": (["surgery/*"], ["surgery", "commands/test_convert.py"]),
    "checkpoints": (["checkpoints/*"], ["checkpoints", "commands/test_convert.py"]),
    "frameworks": (["frameworks/*"], ["frameworks", "commands"]),
    "comparison": (["comparison/*"], ["comparison", "commands"]),
    "intervals": (["reports/interval.py"], ["reports"]),
    "files": (["files.py"], ["test_files.py"]),
}
SETTINGS = """
[tool.mutmut]
source_paths = ["{package}"]
only_mutate = {files}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = {options}
also_copy = {copied}
process_isolation = "forkserver"
timeout_constant = 4.0
debug = true
"""
#: The largest file that a test may write: a mutant may write without an end.
LARGEST = 2**30
#: Codes of mutmut; 255: its process did not find all tests; the others: stopped by a limit.
KILLED, SURVIVED, UNREACHED, LOST = {1, 3}, {0}, {5, 33}, 255


def copy_checkout(folder: Path) -> list[str]:
    """Copy the tracked files and the compiled kernels; returns the names at the top."""
    listed = subprocess.check_output(["git", "-C", ROOT, "ls-files", "-z"], text=True)
    kernels = [str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).rglob("*.so")]
    for name in [*filter(None, listed.split("\0")), *kernels]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    # Python ignores a folder on its path that is not there when it starts.
    (folder / "mutants" / "tests").mkdir(parents=True)
    # mutmut copies no link to a folder.
    (folder / "mutants" / PACKAGE / ".mim").mkdir(parents=True)
    (folder / "mutants" / PACKAGE / ".mim" / "configs").symlink_to(folder / "configs")
    return [p.name for p in folder.iterdir() if p.name not in (PACKAGE, "tests", "mutants")]


def limit() -> None:
    """Limit the files of a process that begins."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))


def run(folder: Path, cwd: Path, *module: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a module that imports the mutants of a copy."""
    # Threads of OpenMP do not survive the fork in which a mutant is tried.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    environment["PYTHONPATH"] = f"{folder}/mutants:{folder}/mutants/tests"
    program, options = [sys.executable, "-m", *module], {"capture_output": True, "text": True}
    return subprocess.run(program, cwd=cwd, env=environment, preexec_fn=limit, **options)


def mutmut(folder: Path, *command: str) -> str:
    """Run mutmut in the copy, and return what it printed."""
    done = run(folder, folder, "mutmut", *command)
    with open(folder / "log.txt", "a") as file:
        file.write(done.stdout + done.stderr)
    return done.stdout


def prepare(folder: Path, room: str) -> None:
    """Make a room's mutants, and run its tests once; those that fail in a copy are left out."""
    files, tests = ROOMS[room]
    copied = copy_checkout(folder)
    project = (folder / "pyproject.toml").read_text()
    options = ["-p", "no:cacheprovider", "--maxfail=1000"]
    for _ in range(3):
        settings = SETTINGS.format(
            package=PACKAGE,
            files=json.dumps([f"{PACKAGE}/{name}" for name in files]),
            tests=json.dumps([f"tests/{name}" for name in tests] + ["-m", "not wide and not long"]),
            options=json.dumps(options),
            copied=json.dumps(copied),
        )
        (folder / "pyproject.toml").write_text(project + settings)
        # mutmut knows its mutants' names only now, so none is tried yet.
        printed = mutmut(folder, "run", "none")
        if (folder / "mutants" / "mutmut-stats.json").exists():
            return
        failed = sorted(set(re.findall(r"^(?:FAILED|ERROR) (tests/\S+)", printed, re.M)))
        print(f"{len(failed)} tests do not run in a copy:", *failed, sep="\n  ")
        options += [f"--deselect={name}" for name in failed]
    raise SystemExit(f"the tests fail in a copy, see {folder}/log.txt")


def exit_codes(folder: Path) -> dict[str, int | None]:
    """mutmut's result for each mutant by name, None where it was not tried."""
    codes = {}
    for path in sorted((folder / "mutants").rglob("*.meta")):
        codes |= json.loads(path.read_text())["exit_code_by_key"]
    return codes


def try_alone(folder: Path, name: str) -> int:
    """Return mutmut's code for a mutant that is tried in a process of its own."""
    stats = json.loads((folder / "mutants" / "mutmut-stats.json").read_text())
    tests = stats["tests_by_mangled_function_name"][name.rpartition("__mutmut_")[0]]
    command = "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests
    done = run(folder, folder / "mutants", *command, MUTANT_UNDER_TEST=name)
    return min(1, done.returncode)


def write_row(row: dict) -> None:
    """Write a room's line in the record, in place of its last one."""
    with open(RECORD, newline="") as file:
        rows = {line["room"]: line for line in csv.DictReader(file)}
    rows[row["room"]] = row
    with open(RECORD, "w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[room] for room in ROOMS if room in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--sample", type=int, default=150, help="mutants to try")
    parser.add_argument("--seed", type=int, default=0, help="by which they are drawn")
    args = parser.parse_args()
    folder = ROOT / "output" / "mutants" / args.room
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prepare(folder, args.room)
    names = sorted(exit_codes(folder))
    drawn = random.Random(args.seed).sample(names, min(args.sample, len(names)))
    mutmut(folder, "run", *drawn)
    codes = {name: exit_codes(folder)[name] for name in drawn}
    codes |= {name: try_alone(folder, name) for name in drawn if codes[name] == LOST}
    unnoticed = sorted(name for name, code in codes.items() if code in SURVIVED | UNREACHED)
    diffs = [mutmut(folder, "show", name) for name in unnoticed]
    (folder / "survivors.diff").write_text("\n".join(diffs))
    commit = subprocess.check_output(
        ["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], text=True
    )
    killed = sum(code in KILLED for code in codes.values())
    row = {
        "room": args.room,
        "commit": commit.strip(),
        "mutants": len(names),
        "seed": args.seed,
        "tried": len(drawn),
        "killed": killed,
        "stopped": len(drawn) - killed - len(unnoticed),
        "survivors": " ".join(name.removeprefix(f"{PACKAGE}.") for name in unnoticed),
    }
    write_row(row)
    print(f"{args.room}: {killed} of {len(drawn)} killed; {folder}/survivors.diff has the others")


if __name__ == "__main__":
    main()
