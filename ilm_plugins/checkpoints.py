"""Files of checkpoints: read without running what is in them, written whole or not at all."""

import codecs
import io
import os
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .pickles import SizeError, check_nesting, check_pickle, check_torch

#: Variables of the environment by which torch.load refuses whatever is no plain data, even where
#: its caller asks for the opposite; or unpickles anything, where its caller says nothing.
REFUSE_CODE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
ALLOW_CODE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
#: Where frameworks keep the state dict in a checkpoint; otherwise it is the checkpoint itself.
STATES = ("model", "state_dict")
#: Names in a state dict that end like this must be of tensors.
OF_TENSORS = (".weight", ".bias", ".running_mean", ".running_var")
#: What is being written has this behind its name until it is whole.
PARTIAL = ".partial"
#: What to do about a file ``last_checkpoint``.
NAME_ONE = "write a checkpoint's name into it, or remove it"
#: What to do about a checkpoint that is refused for the code in it.
TRUST = "; if you trust its source, give --unsafe"


class CheckpointError(Exception):
    """A checkpoint cannot be read or written, told in one line: which file, why, what to do."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint cannot be written; what was there before is still there."""


@contextmanager
def loading(unsafe: bool = False) -> Iterator[None]:
    """Have no ``torch.load`` run foreign code, in this process and those that it starts meanwhile.

    Args:
        unsafe: have :func:`read`, and each ``torch.load`` that does not say otherwise, run it.
    """
    before = {name: os.environ.pop(name, None) for name in (REFUSE_CODE, ALLOW_CODE)}
    os.environ[ALLOW_CODE if unsafe else REFUSE_CODE] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def code_is_allowed() -> bool:
    """Return whether this runs within :func:`loading` with ``unsafe``, or where torch's variable
    for it is set."""
    return os.environ.get(ALLOW_CODE) == "1"


def read(path: str | os.PathLike, unsafe: bool = False) -> Any:
    """What a checkpoint holds, on the CPU.

    Args:
        path: a file of ``torch.save``; ``.safetensors``; or a pickle of arrays, ``.pkl``, as
            detectron2's model zoo has them.
        unsafe: unpickle whatever is in it, which can run any code.

    Raises:
        CheckpointError: the file is missing, truncated or none of these; or holds what could run
            code, or exhaust memory or time.
    """
    path = Path(path).expanduser()
    unsafe = unsafe or code_is_allowed()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if not unsafe:
            return _read_data(path)
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return pickle.Unpickler(file, encoding="latin1").load()
        return torch.load(path, map_location="cpu", weights_only=False)
    except ImportError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read: {error}; pip install {error.name}"
        ) from error
    except SizeError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read: it would exhaust memory or time: "
            f"{error}{TRUST}"
        ) from error
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; give a file") from error
    except Exception as error:  # a file may hold anything, and raise as much
        why = _why(error, path, unsafe)
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {why}") from error


def _read_data(path: Path) -> Any:
    """Unpickle a file without running code, if the sizes in it fit the file."""
    if path.suffix == ".pkl":
        check_pickle(path)
        with path.open("rb") as file:
            contents = ArrayUnpickler(file, encoding="latin1").load()
    else:
        check_torch(path)
        with _arrays_allowed():
            contents = torch.load(path, map_location="cpu", weights_only=True)
    check_nesting(contents)
    return contents


def notes_of(path: str | os.PathLike) -> dict[str, str]:
    """The words that a ``.safetensors`` file, which can be read, has beside its tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _why(error: Exception, path: Path, unsafe: bool) -> str:
    text = " ".join(str(error).split())
    trust = f"which may run code{TRUST}"
    if not unsafe and (name := _foreign(path)):
        return f"it holds {name}, {trust}"
    if words := _words(path):
        return f"it is text, no checkpoint: {words!r}"
    named = re.search(r"unsupported (?:global: )?(?:global|class) (\S+)", text, re.IGNORECASE)
    if named:
        return f"it holds {named[1]}, {trust}"
    if "Trying to call" in text or "Can only" in text:
        return f"it holds more than data, {trust}"
    text = text.removeprefix("PytorchStreamReader ").split(". ")[0][:120]
    return f"it is truncated, or no checkpoint ({type(error).__name__}: {text})"


def _foreign(path: Path) -> str | None:
    """The first name in a bare pickle, one that torch.save has not wrapped, that may be code.

    None where a file is none, or is longer than a megabyte. Nothing is loaded.
    """
    with suppress(Exception):
        pushed, memo, names = [], {}, []
        for opcode, argument, _ in pickletools.genops(io.BytesIO(_head(path, 1 << 20))):
            if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                words = argument.split(" ", 1) if argument else map(str, pushed[-2:])
                names.append(".".join(words).replace("numpy.core.", "numpy._core."))
            if opcode.name == "MEMOIZE" or "PUT" in opcode.name:
                memo[len(memo) if argument is None else argument] = pushed[-1]
            else:
                pushed.append(memo.get(argument) if "GET" in opcode.name else argument)
        known = {*_of_arrays(), "collections.OrderedDict"}
        return next((name for name in names if name not in known), None)
    return None


def _words(path: Path) -> str | None:
    """How a file of text begins; None of any other file."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(_head(path, 1000))
    except (OSError, UnicodeDecodeError):
        return None
    readable = all(letter.isprintable() or letter.isspace() for letter in text)
    return " ".join(text[:40].split()) if readable else None


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, containers and numpy's arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Callable:
        # numpy 2 has renamed numpy.core.
        path = f"{module.replace('numpy.core.', 'numpy._core.')}.{name}"
        known = _of_arrays() | {"collections.OrderedDict": OrderedDict}
        if path not in known:
            raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")
        return known[path]


def _of_arrays() -> dict[str, Callable]:
    # numpy need not be there for anything else.
    from .arrays import MEANT

    # The older Python's name, too, which torch.load translates.
    empty = {"builtins.bytes": _no_bytes, "__builtin__.bytes": _no_bytes}
    return {**MEANT, **empty, "_codecs.encode": _encode}


def _allow_arrays() -> None:
    """Have torch.load, too, know numpy's arrays and numbers, under their old names as well."""
    try:
        known = _of_arrays()
    except ImportError:
        return
    for path, meant in known.items():
        for name in {path, path.replace("._core", ".core")}:
            allow(name, meant)


@contextmanager
def _arrays_allowed() -> Iterator[None]:
    """Allow numpy's arrays and numbers in this block; other loaders may have their own classes."""
    before = torch.serialization.get_safe_globals()
    _allow_arrays()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def allow(name: str, meant: Callable) -> None:
    """Have torch.load, where it refuses code, call ``meant`` wherever a file names ``name``.

    Args:
        name: module and name, as pickle has them.
        meant: a class, which is called so from then on, or a function; neither it nor its
            ``__setstate__`` can do harm, whatever the arguments.
    """
    if not isinstance(meant, type):
        called, meant = meant, lambda *args: called(*args)
    # torch.load looks for what is allowed by the names that it bears.
    meant.__module__, meant.__name__ = name.rsplit(".", 1)
    meant.__qualname__ = meant.__name__
    torch.serialization.add_safe_globals([meant])


def _encode(text: str, encoding: str) -> bytes:
    """How older protocols spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"Unsupported class codec {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How older protocols spell that there are none."""
    return b""


def write(contents: Any, path: str | os.PathLike, notes: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint, in the format that ``path`` ends with; see :func:`read`.

    Args:
        contents: a dict of tensors for ``.safetensors``; what pickle takes for ``.pkl``.
        path: the file.
        notes: words in a ``.safetensors`` beside the tensors, see :func:`notes_of`.

    Raises:
        CheckpointWriteError: it cannot be written; a file that was there stays as it was.
    """
    path = Path(path).expanduser()
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            # In it no two tensors share memory.
            whole = torch.contiguous_format
            own = {k: v.detach().clone(memory_format=whole) for k, v in contents.items()}
            file.write(save(own, {"format": "pt", **(notes or {})}))
        elif path.suffix == ".pkl":
            pickle.dump(contents, file)
        else:
            torch.save(contents, file)


@contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", **options) -> Iterator[IO]:
    """A file to write to, which takes the place of ``path`` when it is whole and on the disk.

    Killed at any byte, or out of space, what ``path`` was before is there still.

    Args:
        path: what is to be written.
        mode, options: of Python's ``open``; text is UTF-8 by default.

    Raises:
        CheckpointWriteError: it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    if "b" not in mode:
        options = {"encoding": "utf-8", **options}
    try:
        with partial.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        # What kept it from being written may keep it from being removed.
        with suppress(OSError):
            partial.unlink()
        # torch.save turns a failed write into an error of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            kept = ". What was there before is still there" if path.parent.is_dir() else ""
            raise CheckpointWriteError(
                f"{str(path)!r} cannot be written: {cause.strerror or cause}; make room, or write "
                f"elsewhere{kept}"
            ) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Have a renaming survive a loss of power, where folders can be synced."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_state(contents: Any, path: str | os.PathLike, entries: Iterable[str] = STATES) -> None:
    """Raise CheckpointError unless a checkpoint holds a state dict: names -> tensors or arrays.

    Args:
        contents: of the checkpoint.
        path: the checkpoint.
        entries: where to look for it: in the first of these that is there, or else at the top.
    """
    state = contents
    if isinstance(contents, Mapping):
        state = next((contents[entry] for entry in entries if entry in contents), contents)
    named = isinstance(state, Mapping) and all(isinstance(key, str) for key in state)
    if not named or not any(hasattr(value, "shape") for value in state.values()):
        raise CheckpointError(stateless(contents, path, entries))
    for key, value in state.items():
        dense(value, key, path)


def dense(value: Any, key: Any, path: str | os.PathLike) -> Any:
    """A value of a state dict, if layers can compute with it; an expanded tensor is copied.

    Args:
        value: a tensor, an array, or anything else, which stays as it is.
        key: its name in the state dict.
        path: the checkpoint.

    Raises:
        CheckpointError: the value is a meta, sparse, quantized or nested tensor; or it is not a
            tensor, and its name is that of a weight, a bias or a running statistic.
    """
    kind = None
    if isinstance(value, Tensor):
        kinds = {
            "meta": value.is_meta,
            "nested": value.is_nested,
            "sparse": value.layout is not torch.strided,
            "quantized": value.is_quantized,
        }
        kind = next((f"{kind} tensor" for kind, found in kinds.items() if found), None)
    elif not hasattr(value, "shape") and str(key).endswith(OF_TENSORS):
        kind = type(value).__name__
    if kind is not None:
        raise CheckpointError(
            f"checkpoint {str(path)!r}: {key} is a {kind}, expected a dense tensor with values; "
            "save the checkpoint with one"
        )
    if not isinstance(value, Tensor):
        return value
    value = value.resolve_conj().resolve_neg()
    return value.clone() if 0 in value.stride() and value.numel() > 1 else value


def stateless(contents: Any, path: str | os.PathLike, entries: Iterable[str] = STATES) -> str:
    """That there is no state dict in a checkpoint, in words; see :func:`check_state`."""
    held = ", ".join(map(repr, contents)) if isinstance(contents, Mapping) else type(contents)
    return (
        f"{str(path)!r} holds no state dict, neither under {' or '.join(map(repr, entries))} nor "
        f"at the top, but {str(held)[:120]}; give a checkpoint of torch, detectron2 or MMEngine"
    )


def check_fits(
    path: str | os.PathLike, model: nn.Module, found: Iterable[str], absent: Iterable[str]
) -> None:
    """Raise CheckpointError if a checkpoint is of another model.

    Args:
        path: the checkpoint.
        model: what it was loaded into.
        found: names in the checkpoint.
        absent: names of the model's tensors that are not there, or have another shape there.
    """
    own = model.state_dict().keys()
    if own and own <= {*absent}:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is of another model: it has none of the {len(own)} tensors "
            f"such as {next(iter(own))}, but {next(iter(found), 'nothing')}; give one of this model"
        )


def named(last: str | os.PathLike) -> str:
    """What a file ``last_checkpoint`` names, which may be nothing.

    Raises:
        CheckpointError: it is no text.
    """
    try:
        return Path(last).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise CheckpointError(f"{str(last)!r} is no text; {NAME_ONE}") from None


def remove_partial(folder: str | os.PathLike) -> None:
    """Remove what runs that were killed while they wrote have left in a folder."""
    for path in Path(folder).glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)


def copied(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A state dict of its own, with the versions of its modules, which torch keeps beside it.

    Without them, modules whose names have changed since take it for one of long ago.

    Args:
        state: names -> tensors.
        prefix: what is taken off all names.
    """
    copy = OrderedDict((_without(prefix, name), value) for name, value in state.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        # Names of modules, which have no dot at their end.
        of_modules = ((_without(prefix, f"{name}."), of) for name, of in versions.items())
        copy._metadata = OrderedDict((name.removesuffix("."), of) for name, of in of_modules)
    return copy


def _without(prefix: str, name: Any) -> Any:
    return name.removeprefix(prefix) if isinstance(name, str) else name


#: What wrappers put before all names: DistributedDataParallel, and torch.compile.
OF_WRAPPERS = ("module.", "_orig_mod.")


def unwrapped(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A copy of a state dict without what wrappers of a model put before all names.

    Args:
        state: names -> tensors.
        model: what it is for; a name of its own may begin so.
    """
    for prefix in OF_WRAPPERS * 2:  # one in the other, in either order
        wrapped = state and all(str(name).startswith(prefix) for name in state)
        if wrapped and not model.state_dict().keys() & state.keys():
            state = copied(state, prefix)
    return copied(state)


def bare(name: Any) -> Any:
    """A name in a state dict without what wrappers of a model put before it."""
    while isinstance(name, str) and name.startswith(OF_WRAPPERS):
        name = name.partition(".")[2]
    return name


def absent(state: dict[str, Any], model: nn.Module) -> list[str]:
    """Names of a model's tensors that are not in a state dict, or have another shape there."""
    own = model.state_dict()
    return [name for name, t in own.items() if getattr(state.get(name), "shape", None) != t.shape]


def check_resumes(
    path: str | os.PathLike,
    state: dict[str, Any],
    model: nn.Module,
    optimizers: Iterable[tuple[Any, Optimizer]],
    setting: str,
) -> None:
    """Raise CheckpointError unless a training can go on from a checkpoint.

    Args:
        path: the checkpoint.
        state: of the model, in it.
        model: that of the config.
        optimizers: states in it, each with the optimizer of the config, which takes it.
        setting: what a checkpoint is given by that a training is to start from.
    """
    state = unwrapped(state, model)
    # Counts of batches are the one thing that frameworks do without.
    lacking = [name for name in absent(state, model) if not name.endswith("num_batches_tracked")]
    if lacking:
        name = lacking[0]
        found, own = getattr(state.get(name), "shape", None), model.state_dict()[name].shape
        why = f"{name} is " + (f"{(*found,)} in it, not {(*own,)}" if found else "missing in it")
        why += f", and {len(lacking) - 1} others do not fit" if len(lacking) > 1 else ""
    else:
        why = next(filter(None, (_misfit(*pair) for pair in optimizers)), None)
    if why:
        raise CheckpointError(
            f"checkpoint {str(path)!r} does not fit this config ({why}); resume with the config of "
            f"that run, or give another output folder and the checkpoint as {setting}"
        )


def _misfit(state: Any, optimizer: Optimizer) -> str | None:
    """Why an optimizer cannot go on from a state, which it takes otherwise."""
    options = {*optimizer.defaults}
    try:
        optimizer.load_state_dict(state)
    except Exception as error:  # optimizers raise what they like
        told = " ".join(str(error).split())
        return f"its optimizer's state is another's: {type(error).__name__}: {told}"
    for group in optimizer.param_groups:
        # It has those of the file, and what torch adds to files of older releases.
        if lacking := options - group.keys():
            return f"its optimizer's state is another's: it has no {', '.join(sorted(lacking))}"
        for parameter in group["params"]:
            for name in ("momentum_buffer", "exp_avg"):
                value = optimizer.state.get(parameter, {}).get(name)
                if isinstance(value, Tensor) and value.shape != parameter.shape:
                    return f"its optimizer's {name} is of other parameters"
    return None
