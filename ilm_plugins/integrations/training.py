"""One command line for the training of every framework's configs; see ``tools/train_net.py``."""

import argparse
import ast
import errno
import fcntl
import gc
import itertools
import logging
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from .. import checkpoints
from ..errors import CheckpointError, OptionError, PeerError, RunError, UserError
from . import installed, stopping
from .stopping import Stop, stoppable


def main(argv: Sequence[str] | None = None) -> int:
    """Train or evaluate what a config file describes.

    Returns:
        The exit status: 0; or after printing one line, 2 for the user's mistake, 1 for what ended a
        run that had begun, and 130 or 143 for Ctrl-C and SIGTERM.
    """
    args = parser().parse_args(argv)
    # A disk that is full shall be told once, and not by each line of the log.
    logging.raiseExceptions = False
    # A launcher ends with SIGTERM those whose line matters less than another's.
    signals = stopping.SIGNALS if args.launcher == "none" else (signal.SIGINT,)
    return command(lambda: start(args), args, signals=signals)


def command(
    run: Callable[[], int | None],
    args: argparse.Namespace | None = None,
    resumes: bool = True,
    signals: tuple[signal.Signals, ...] = stopping.SIGNALS,
) -> int:
    """Run a command; on an error, print one line to stderr.

    Args:
        run: may return an exit status of its own.
        args: the command line, with ``traceback`` of :func:`add_traceback`; and, set by
            :func:`occupied`, the folder of a run that has begun as ``log_folder``.
        resumes: whether what has failed can be gone on with by --resume.
        signals: those that stop it with one line, too.

    Returns:
        The exit status: 0 or the run's; or that of what is printed, 2 where nothing can be gone on
        with; or 128 and the number of the signal.
    """
    try:
        with stoppable(signals), told():
            return run() or 0
    except Exception as error:
        if getattr(args, "traceback", False):
            traceback.print_exception(error)
        if not isinstance(error, UserError):
            error = unforeseen(error, args)
        line, status, can_resume = str(error), error.status, error.can_resume
    except Stop as stop:
        (came,) = stop.args
        line, status, can_resume = f"stopped by {came.name}", 128 + came, True
    if can_resume and resumes and not getattr(args, "eval_only", False):
        line = f"{line.rstrip('.')}. {RESUME}"
    print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
    return status if resumes or status > RunError.status else UserError.status


def start(args: argparse.Namespace) -> None:
    """Train or evaluate, by the framework whose config it is."""
    late = [word for word in args.opts if word.startswith("--")]
    if late:
        raise UserError(f"{late[0]} stands behind an override; give options before overrides")
    framework = framework_of(args.config_file)
    check_processes(args)
    check_framework(framework, args)
    if framework == "mmengine":
        from .openmmlab import train
    else:
        from .detectron2 import train
    with checkpoints.loading(unsafe=args.unsafe):
        train.run(args)


def parser() -> argparse.ArgumentParser:
    """The command line: detectron2's own options, --num-processes, and two of MMEngine's."""
    p = argparse.ArgumentParser(
        description="Train or evaluate a detectron2 .yaml or LazyConfig .py, or an MMEngine .py.",
        epilog="Several machines: the same command on each, with --num-machines, --machine-rank "
        "and one --dist-url, such as tcp://10.0.0.1:29500.",
    )
    p.add_argument("--config-file", required=True, metavar="FILE")
    p.add_argument(
        "--num-gpus", type=int, metavar="N", help="GPUs a machine, 0 for CPU; default: 1 if any"
    )
    p.add_argument(
        "--num-processes",
        type=int,
        default=1,
        metavar="N",
        help="processes a machine over gloo, with --num-gpus 0",
    )
    p.add_argument("--num-machines", type=int, default=1, metavar="M")
    p.add_argument("--machine-rank", type=int, default=0, metavar="R", help="0 to M - 1")
    p.add_argument("--dist-url", default="auto", metavar="URL", help="default: a free local port")
    p.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    p.add_argument("--eval-only", action="store_true", help="evaluate the checkpoint and stop")
    p.add_argument(
        "--tta", action="store_true", help="MMEngine: evaluate with the config's tta_pipeline"
    )
    p.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="MMEngine: who started this process; pytorch is torchrun",
    )
    p.add_argument(
        "--ratios-interval",
        type=positive,
        metavar="N",
        help="log EN's and SN's mean ratios every N iterations, as ratios/LAYER/NORMALIZER",
    )
    p.add_argument(
        "--unsafe",
        "--unsafe-checkpoints",
        action="store_true",
        help="run code that checkpoints, yaml configs and proposals hold",
    )
    add_traceback(p)
    p.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="overrides: 'KEY VALUE' pairs for .yaml, 'KEY=VALUE' for .py",
    )
    return p


def add_traceback(p: argparse.ArgumentParser) -> None:
    """Add --traceback to a command line that :func:`command` runs."""
    p.add_argument("--traceback", action="store_true", help="print the traceback of an error")


def positive(word: str) -> int:
    """A number on the command line, at least 1."""
    number = int(word)
    if number < 1:
        raise ValueError
    return number


def framework_of(path: str) -> str:
    """Tell by its content whose config a file is: "detectron2" or "mmengine".

    Raises:
        UserError: there is no such file, or it is neither .yaml nor readable Python.
    """
    if not os.path.isfile(path):
        raise UserError(f"config file {path!r} does not exist; give the path of a .yaml or .py")
    if path.endswith((".yaml", ".yml")):
        return "detectron2"
    if not path.endswith(".py"):
        raise UserError(f"config file {path!r} is neither .yaml nor .py; give one of these")
    try:
        nodes = list(ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path!r} is not readable Python: {error}") from None
    imported = {name.split(".")[0] for node in nodes for name in _imports(node)}
    if "detectron2" in imported:
        return "detectron2"
    if any(name.startswith("mm") for name in imported) or any(map(_is_mmengine, nodes)):
        return "mmengine"
    return "detectron2"


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def _is_mmengine(node: ast.AST) -> bool:
    """Whether MMEngine's configs alone have such a node, as in `model = dict(type=...)`."""
    if isinstance(node, ast.Name):
        return node.id in {"_base_", "custom_imports", "default_scope", "read_base"}
    if isinstance(node, ast.Dict):
        return any(isinstance(key, ast.Constant) and key.value == "type" for key in node.keys)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return any(keyword.arg == "type" for keyword in node.keywords)
    return False


def check_framework(framework: str, args: argparse.Namespace) -> None:
    """Raise UserError unless a framework is installed, and has the options that are given."""
    if not installed(framework):
        package = {"mmengine": "openmmlab"}.get(framework, framework)
        raise UserError(
            f"{args.config_file} is a config of {framework}, and {framework} is not installed; "
            f"run 'make install-{package}'"
        )
    if framework == "detectron2" and (args.tta or args.launcher != "none"):
        option = "--tta" if args.tta else f"--launcher {args.launcher}"
        raise UserError(
            f"{option} is for MMEngine configs, and {args.config_file} is one of detectron2; "
            "leave it out"
        )


def check_output(folder: str, setting: str) -> None:
    """Raise UserError unless files can be written to a folder, which is made if missing."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"output folder {folder!r} cannot be written: {error.strerror}; set {setting}"
        ) from error


@contextmanager
def refusing(what: str, advice: str) -> Iterator[None]:
    """Raise UserError, "WHAT: REASON; ADVICE", for exceptions that are not for the user yet."""
    try:
        yield
    except (UserError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # configs and models are programs, and raise what they like
        if _lacks_operators(error):
            raise UserError(OPERATORS) from error
        raise UserError(
            f"{what}: {type(error).__name__}: {' '.join(str(error).split())}; {advice}"
        ) from error


def building(what: str) -> AbstractContextManager[None]:
    """Raise UserError for what building ``what`` of a config raises."""
    return refusing(f"{what} cannot be built", "mend the config, or the overrides")


def reading_config(path: str) -> AbstractContextManager[None]:
    """Raise UserError for what reading a config file raises."""
    return refusing(f"{path} cannot be read", "mend the file")


def overriding(path: str, word: str, form: str) -> AbstractContextManager[None]:
    """Raise UserError for what one override of a config raises.

    Args:
        path: the config file.
        word: the override.
        form: of an override, such as KEY=VALUE.
    """
    return refusing(
        f"override {word[:100]} does not fit {path}", f"give {form} with a key that it has"
    )


@contextmanager
def occupied(folder: str, setting: str, args: argparse.Namespace) -> Iterator[None]:
    """Have a training alone in its output folder; what others left there half-written goes.

    Evaluation shares it, and training does where the file system has no locks. An error that nobody
    foresaw is logged there from then on.

    Raises:
        UserError: another training is there.
    """
    if args.eval_only or not _is_first(args):
        args.log_folder = folder
        yield
        return
    with ExitStack() as stack:
        with suppress(OSError):
            lock = stack.enter_context(Path(folder, LOCK).open("ab+", buffering=0))
            try:
                # Unlike that of flock it ends with this process, though its children live on.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                lock.seek(0)
                owner = lock.read(200).decode(errors="replace") or "another process"
                raise UserError(
                    f"output folder {folder!r} is in use by {owner}; wait for it, or set {setting}"
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        checkpoints.remove_partial(folder)
        args.log_folder = folder
        yield


def _is_first(args: argparse.Namespace) -> bool:
    """Whether this process, or one that it starts, is the first of all."""
    if args.launcher == "none":
        return args.machine_rank == 0
    return os.environ.get(RANKS[args.launcher], "0") == "0"


def annotated(path: str) -> str:
    """The path, marked "(empty)" for a zero-byte file."""
    return f"{path} (empty)" if os.path.isfile(path) and not os.path.getsize(path) else path


#: Log file for tracebacks of unexpected exceptions, in the output folder.
ERRORS = "error.log"
#: Maximum length of an exception's message in the line that is printed.
LONGEST = 300
#: Lock file of the training that writes to an output folder.
LOCK = ".lock"
#: Launcher -> variable of a process's number among all.
RANKS = {"pytorch": "RANK", "slurm": "SLURM_PROCID"}
#: errno values of disk and permission failures.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
RESUME = "--resume goes on from the last checkpoint"


def without_resume(line: str) -> str:
    """A line for a command that has no --resume."""
    return line.removesuffix(RESUME).rstrip()


def failure(error: BaseException) -> UserError | None:
    """An exception in one line, where it is no defect of the program's; otherwise None."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return type(error)(_reason(error).partition(": ")[2])
    if _lacks_operators(error):
        return UserError(OPERATORS)
    if isinstance(error, FloatingPointError):
        return RunError(f"{text}; lower the learning rate, or look at the data")
    if isinstance(error, OSError) and (error.errno in DISK or error.filename):
        file = error.filename or "a file of the run"
        return RunError(f"{file}: {error.strerror}; mend that")
    if isinstance(error, ProcessExitedException):
        how = f"by {error.signal_name}" if error.signal_name else f"with status {error.exit_code}"
        return RunError(
            f"process {error.error_index} ended {how}, and the others with it; a process out of "
            f"memory ends so, too"
        )
    if isinstance(error, ProcessRaisedException):
        for kind in (UserError, OptionError, CheckpointError, RunError, PeerError):
            name = f"{kind.__module__}.{kind.__qualname__}: "
            if _reason(error).startswith(name):
                # That process has waited already.
                told = RunError if kind is PeerError else kind
                return told(_reason(error).removeprefix(name))
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return RunError(f"{text}. Make batches or images smaller, or take more GPUs")
    if isinstance(error, RuntimeError) and "DataLoader worker" in text and "exited" in text:
        return RunError(f"{text}; a process out of memory ends so")
    if isinstance(error, RuntimeError) and re.search(LOST, text):
        return PeerError(f"another process is gone, and this one ends with it: {text}")
    return None


def _lacks_operators(error: BaseException | None) -> bool:
    """Whether an exception comes from mmcv without its compiled operators."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name == "mmcv._ext":
            return True
        error = error.__cause__ or error.__context__
    return False


def unforeseen(error: Exception, args: argparse.Namespace | None = None) -> UserError:
    """An exception that :func:`failure` does not know, in one line; its traceback is logged.

    Args:
        error: may hold the traceback of another process, whose exception is told then.
        args: see :func:`command`.

    Returns:
        RunError where a run had begun.
    """
    folder = getattr(args, "log_folder", None)
    log = folder and _log(error, folder)
    if log:
        where = f"see {log} for the traceback"
    elif getattr(args, "traceback", False):
        where = "the traceback is above"
    else:
        where = "give --traceback for the traceback"
    reason = _reason(error)[:LONGEST].rstrip(".")
    line = (
        f"unexpected {reason}; {where}. If it is no mistake of the config or the data, report it "
        "with the output of 'python -m ilm_plugins'"
    )
    return RunError(line) if folder else UserError(line)


def _reason(error: Exception) -> str:
    """Type and message of an exception.

    One that comes out of another process, a loader's among them, holds that process's traceback;
    then of the exception there.
    """
    text = f"{type(error).__name__}: {error}"
    # Frames are indented; the exception comes behind them.
    *_, last = text.split("Traceback (most recent call last):\n")
    lines = itertools.dropwhile(lambda line: line.startswith(" "), last.splitlines())
    return " ".join(" ".join(lines).split()).removesuffix(":")


def _log(error: Exception, folder: str) -> Path | None:
    """Append an exception's traceback to a folder's log; None where that cannot be written."""
    path = Path(folder, ERRORS)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    lines = (f"{when} {shlex.join(sys.argv)}\n", *traceback.format_exception(error))
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(lines))
    except OSError:
        return None
    return path


#: Message for mmcv without compiled operators.
OPERATORS = (
    "mmcv is installed without its compiled operators, which this config needs; "
    "run 'make install-openmmlab'"
)
#: Error messages of collective operations when another rank died.
LOST = r"(?i)connection (closed|reset) by peer|broken pipe|gloo.*(timed out|timeout)|NCCL.*remote"


#: Seconds in which a process that ends by its own mistake has ended, on a busy machine as well.
PATIENCE = 10


def leave_group() -> None:
    """End this process's group, where it is in one.

    What still holds on to that goes first, such as models, which refer to themselves: threads of a
    group that is left to the interpreter's end may abort the process.
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def told() -> Iterator[None]:
    """Raise what ends one of several processes as :func:`failure` has it, to be told by the first.

    If another rank died, wait first: the launcher ends all ranks with that rank's line.
    """
    try:
        yield
    except Exception as error:
        line = failure(error)
        if line is None:
            raise
        if isinstance(line, PeerError):
            time.sleep(PATIENCE)
        raise line from error


class WithoutTracebacks(logging.Filter):
    """Leaves the traceback out of a log's record of an error, which :func:`command` tells."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = None
        return True


def check_processes(args: argparse.Namespace) -> None:
    """Settle and check the numbers of GPUs, processes and machines, before anything starts.

    Raises:
        UserError: they cannot be had, or contradict each other.
    """
    available = torch.cuda.device_count()
    if args.num_gpus is None:
        args.num_gpus = min(1, available)
    if not 0 <= args.num_gpus <= available:
        raise UserError(
            f"--num-gpus {args.num_gpus}: this machine has {available}; give 0 to {available}, "
            "where 0 is the CPU and --num-processes N starts several processes on it"
        )
    if args.num_processes < 1 or (args.num_processes > 1 and args.num_gpus > 0):
        raise UserError(
            f"--num-processes {args.num_processes} with --num-gpus {args.num_gpus}: "
            "give at least 1, and more than 1 with --num-gpus 0 only"
        )
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}: "
            "give each machine its own rank, from 0 to the number of machines less 1"
        )
    if args.launcher != "none":
        check_launcher(args)
    elif args.num_machines > 1 and args.dist_url == "auto":
        raise UserError(
            f"--num-machines {args.num_machines} needs --dist-url; give every machine the same, "
            "such as tcp://10.0.0.1:29500 with the first machine's address"
        )


def check_launcher(args: argparse.Namespace) -> None:
    """Raise UserError unless a launcher has started this process, and alone decides how many."""
    if args.num_processes > 1 or args.num_machines > 1:
        raise UserError(
            f"--launcher {args.launcher} decides the number of processes; leave --num-processes "
            "and --num-machines out"
        )
    variable = {"pytorch": "LOCAL_RANK", "slurm": "SLURM_PROCID"}[args.launcher]
    if variable not in os.environ:
        program = {"pytorch": "torchrun", "slurm": "srun"}[args.launcher]
        raise UserError(
            f"--launcher {args.launcher}, but {variable} is not set; start this with {program}, "
            "or leave --launcher out"
        )
    if args.launcher == "slurm" and args.num_gpus == 0:
        raise UserError("--launcher slurm needs GPUs; use --num-processes on the CPU")
