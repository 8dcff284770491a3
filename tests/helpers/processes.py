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
from pathlib import Path
from types import ModuleType

import torch.multiprocessing

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchvision"])
#: Files that tests run as programs of their own.
PROGRAMS = Path(__file__).parents[1] / "programs"


class Process:
    """Like a ``subprocess.Popen`` of ``sys.executable``, which writes to files.

    The words that follow are -c and code, -m and a module, or the path of a program.
    """

    def __init__(self, command, *, stdout, stderr, env=None):
        executable, *words = map(str, command)
        assert executable == sys.executable, command
        env = dict(os.environ if env is None else env)
        args = words, env, os.getcwd(), (stdout.name, stderr.name)
        self._process = SERVER.Process(target=_execute, args=args)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def terminate(self):
        self._process.terminate()

    def wait(self, timeout=None):
        self._process.join(timeout)
        return self.poll()


def run(command, *, check=False, env=None, timeout=300):
    """Like ``subprocess.run`` with captured text."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open(f"{folder}/out", "w+") as out,
        open(f"{folder}/err", "w+") as err,
    ):
        process = Process(command, stdout=out, stderr=err, env=env)
        if process.wait(timeout) is None:
            os.kill(process.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(command, timeout)
        done = subprocess.CompletedProcess(command, process.poll(), out.read(), err.read())
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def run_program(name, *arguments, **options):
    """Run a file of :data:`PROGRAMS`, which must end with status 0."""
    return run([sys.executable, PROGRAMS / name, *arguments], check=True, **options)


def spawn(function, args, nprocs):
    """Like ``torch.multiprocessing.spawn``, which would import torch in each process."""
    torch.multiprocessing.start_processes(function, args, nprocs, start_method="forkserver")


def _execute(words, env, cwd, outputs):
    """Run a program in the forked process, which multiprocessing ends with its status."""
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    if words[0] == "-c":
        _, code, *rest = words
        sys.argv = ["-c", *rest]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(main))
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
