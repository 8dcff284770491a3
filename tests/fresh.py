"""Python processes in which torch and torchvision are imported already, but nothing tested.

Importing them takes more than three seconds. A server of multiprocessing's does it once, and is
forked for each process that a test asks for.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from types import ModuleType

import torch.multiprocessing

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchvision"])


class Process:
    """Does as ``subprocess.Popen`` does for a process that writes to files.

    Args:
        command: ``sys.executable``, then ``"-c"`` and code or ``"-m"`` and a module; arguments.
        stdout, stderr, env, cwd: those of ``subprocess.Popen``.
    """

    def __init__(self, command, *, stdout, stderr, env=None, cwd=None):
        executable, *words = map(str, command)
        assert executable == sys.executable, command
        self.command, env = command, dict(os.environ if env is None else env)
        args = words, env, cwd or os.getcwd(), (stdout.name, stderr.name)
        self._process = SERVER.Process(target=_execute, args=args)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.command, timeout)
        return self.returncode


def run(command, *, check=False, timeout=300, env=None, cwd=None):
    """Do as ``subprocess.run`` with captured text does."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open(f"{folder}/out", "w+") as out,
        open(f"{folder}/err", "w+") as err,
    ):
        process = Process(command, stdout=out, stderr=err, env=env, cwd=cwd)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            raise
        done = subprocess.CompletedProcess(command, status, out.read(), err.read())
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def spawn(function, args, nprocs):
    """Do as ``torch.multiprocessing.spawn`` does, which would import torch in each process."""
    torch.multiprocessing.start_processes(function, args, nprocs, start_method="forkserver")


def _execute(words, env, cwd, outputs):
    """Run code or a module in the forked process, and end it with the status of a script's."""
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
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
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
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
