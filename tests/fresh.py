"""Python processes in which torch and torchvision are imported already, but nothing tested.

Importing them takes more than three seconds. A server of multiprocessing's does it once, and is
forked for each process that a test asks for.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchvision"])


def run(command, *, env=None, cwd=None, check=False, timeout=300, **_):
    """Do as ``subprocess.run`` with captured text does.

    Args:
        command: ``sys.executable``, then ``"-c"`` and code, or the path of a script; arguments.
        env, cwd, check, timeout: those of ``subprocess.run``; its other options are ignored.
    """
    executable, *words = map(str, command)
    assert executable == sys.executable, command
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        env = dict(os.environ if env is None else env)
        process = SERVER.Process(target=_execute, args=(words, env, cwd or os.getcwd(), out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        done = subprocess.CompletedProcess(
            command, process.exitcode, out.read_text(), err.read_text()
        )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def _execute(words, env, cwd, out, err):
    """Run code or a script in the forked process, and end it with the status of a script's."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    status = 0
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), vars(main))
        else:
            sys.argv = words
            sys.path.insert(0, os.path.dirname(words[0]))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
        if not isinstance(status, int):  # a message, which Python prints
            print(status, file=sys.stderr)
            status = 1
    except Exception:  # as Python does of any script
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Without waiting for threads of what was imported.
    os._exit(status)
