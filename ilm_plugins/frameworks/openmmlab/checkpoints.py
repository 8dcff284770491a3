"""MMEngine's checkpoints: reading runs no code from them, writing replaces files atomically."""

import ast
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import wrapt
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from mmengine.model.weight_init import PretrainedInit
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from ... import checkpoints
from ...checkpoints import CheckpointError


def use_safe_checkpoints() -> None:
    """Change MMEngine in this process: it reads and writes checkpoints by this module.

    From then on, loading a local file raises CheckpointError if it holds code, unless
    :func:`ilm_plugins.checkpoints.loading` allows that, or no state dict; ``init_cfg`` with a
    checkpoint of another model raises it, too; and local files are replaced only when the new one
    is complete, see :class:`AtomicFiles`. There is no way back; calling it again does no harm.
    """
    register_backend("local", AtomicFiles, force=True, prefixes="")
    CheckpointLoader.register_scheme(prefixes="", loader=_load, force=True)
    allow_history()
    _wrap_loading()
    # Some releases allow getattr when they load checkpoints, and getattr can reach any code.
    if hasattr(mmengine_checkpoint, "get_torch_safe_globals"):
        mmengine_checkpoint.get_torch_safe_globals = list


@functools.cache
def _wrap_loading() -> None:
    """Wrap the two functions of MMEngine that load checkpoints, once."""
    wrapt.wrap_function_wrapper(PretrainedInit, "__call__", _load_pretrained)
    wrapt.wrap_function_wrapper(CheckpointLoader, "load_checkpoint", _load_without_config)


def allow_history() -> None:
    """Allow MMEngine's HistoryBuffer, its log of values in arrays, in checkpoints that are read.

    To be called before each run: MMEngine's own loader, wherever a program calls it, forbids the
    class again when it returns.
    """
    checkpoints.allow_arrays()  # torch.hub, which MMEngine calls for a URL, reads the file itself
    checkpoints.allow(f"{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}", HistoryBuffer)
    checkpoints.allow("builtins.getattr", _statistic)


def _statistic(owner: type, name: str) -> Callable:
    """Replace getattr in pickles: return a public method of HistoryBuffer, or raise ValueError."""
    if owner is not HistoryBuffer or name.startswith("_"):
        raise ValueError("Unsupported global builtins.getattr")
    return getattr(HistoryBuffer, name)


def check_fits(filename: str, model: nn.Module, checkpoint: dict, prefix: str = "") -> None:
    """Raise CheckpointError if no tensor of the model is in a checkpoint, by name and shape.

    A model without tensors always fits. A prefix ``module.`` in the checkpoint is ignored.

    Args:
        filename: the checkpoint's file, for the message.
        model: the model that the checkpoint was loaded into.
        checkpoint: the contents: a state dict, or a dict with the entry ``state_dict``.
        prefix: the prefix of names in the checkpoint that names in the model lack.
    """
    state = checkpoint.get("state_dict", checkpoint)
    before = re.compile(rf"^(module\.)?{re.escape(prefix)}")
    found = {before.sub("", name): value for name, value in state.items() if before.match(name)}
    absent = checkpoints.find_absent(found, model)
    checkpoints.check_fits(filename, model, found or state, absent)


def _load_pretrained(wrapped: Callable, init: PretrainedInit, args: tuple, options: dict) -> None:
    """Initialize a module by ``init_cfg=dict(type="Pretrained")``, and check that its file fits.

    Args:
        wrapped: MMEngine's method, which initializes the module.
        init: the object that the method belongs to; its ``checkpoint`` is a path or a URL.
        args, options: the method's arguments; the only one in ``args`` is the module.

    Raises:
        CheckpointError: the checkpoint does not exist, cannot be read, or has none of the module's
            tensors. In the last case the module has been initialized already.
    """
    (module,) = args
    wrapped(module)
    prefix = f"{init.prefix.rstrip('.')}." if init.prefix else ""
    contents = CheckpointLoader.load_checkpoint(init.checkpoint, "cpu", logger=None)
    check_fits(init.checkpoint, module, contents, prefix)


def _load_without_config(wrapped: Callable, _: type, args: tuple, options: dict) -> Any:
    """Load a checkpoint without its entry ``meta.config``, which MMEngine runs when resuming.

    Only MMCV wrote that entry, and MMEngine cannot resume MMCV's checkpoints anyway.

    Args:
        wrapped: ``CheckpointLoader.load_checkpoint``, whose errors pass unchanged.
        args, options: its arguments.

    Returns:
        The contents that it loads, without that entry.
    """
    contents = wrapped(*args, **options)
    meta = contents.get("meta") if isinstance(contents, dict) else None
    if isinstance(meta, dict):
        meta.pop("config", None)
    return contents


def settings(text: str) -> dict[str, Any]:
    """Parse the text of a config that MMEngine wrote, without running it.

    Returns:
        A dict from the names of the settings to their values.

    Raises:
        ValueError: a line is not an assignment, or a value is neither a literal nor ``dict(...)``.
        SyntaxError: the text is not Python.
    """
    found = {}
    for line in ast.parse(text).body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                try:
                    found[name] = ast.literal_eval(_DictCalls().visit(value))
                except ValueError:
                    raise ValueError(f"line {line.lineno} has more than literals") from None
            case _:
                raise ValueError(f"line {line.lineno} is not a setting")
    return found


class _DictCalls(ast.NodeTransformer):
    """Turns calls ``dict(a=1)``, and ``dict({"a-b": 1})``, into ``{"a": 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Return a call of ``dict`` as a literal dict; in other calls, replace those within."""
        self.generic_visit(node)
        match node:
            # A keyword without a name is a dict with two asterisks, which literal_eval refuses.
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=words):
                keys = [word.arg and ast.Constant(word.arg) for word in words]
                return ast.Dict(keys, [word.value for word in words])
            case ast.Call(func=ast.Name(id="dict"), args=[ast.Dict() as first], keywords=[]):
                return first
        return node


def nested_dicts(value: Any, name: str) -> Iterator[tuple[str, dict]]:
    """Yield (dotted key, dict) for all dicts within a part of a config, outer ones first.

    Args:
        value: the part; if it is a dict, it is the first. Items of lists and tuples have their
            index as key, as in "model.decode_head.0".
        name: the key of the part.
    """
    items = ()
    if isinstance(value, dict):
        yield name, value
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, inner in items:
        yield from nested_dicts(inner, f"{name}.{key}")


def _load(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint for MMEngine, always to the CPU; the model copies it to its device.

    Args:
        filename: path of the file.
        map_location: has no effect.

    Raises:
        CheckpointError: the file cannot be read, or holds no state dict.
    """
    contents = checkpoints.read(filename)
    checkpoints.check_state(contents, filename)
    return contents


class AtomicFiles(LocalBackend):
    """MMEngine's backend for local files; a file is replaced only when the new one is complete.

    MMEngine removes an outdated checkpoint before it writes the next one. Here the outdated file
    stays until the next one is complete.
    """

    outdated: list[Path] = []  # noqa: RUF012 - shared: MMEngine makes an instance for each file

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write a file; if its name ends in .pth, then delete the outdated checkpoints.

        Those are the checkpoints for which :meth:`remove` was called before.

        Args:
            obj: the contents.
            filepath: the file, replaced if it exists; its folder is created if it is missing.

        Raises:
            RunError: the file cannot be written; an earlier one of that name is unchanged.
            OSError: the folder cannot be created, or an outdated checkpoint cannot be deleted.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with checkpoints.replacing(path) as file:
            file.write(obj)
        # Only a checkpoint replaces a checkpoint; other files may be written meanwhile.
        while path.suffix == ".pth" and self.outdated:
            old = self.outdated.pop()
            if old != path:
                old.unlink(missing_ok=True)

    def remove(self, filepath: str | os.PathLike) -> None:
        """Remove a file; a checkpoint is removed later, when the next one is written."""
        if Path(filepath).suffix == ".pth":
            self.outdated.append(Path(filepath))
        else:
            super().remove(filepath)


def latest(work_dir: str | os.PathLike) -> str | None:
    """Return the path or URL of the checkpoint from which a run resumes; None without one.

    A missing folder has none, without an error.

    This is the checkpoint that MMEngine's file ``last_checkpoint`` names. If that is missing, for
    example after a kill, it is the file ``iter_N.pth`` or ``epoch_N.pth`` with the largest N.

    Raises:
        CheckpointError: ``last_checkpoint`` is not text; or it names a missing file, and there is
            no ``iter_N.pth`` or ``epoch_N.pth``.
    """
    folder = Path(work_dir)
    last = folder / "last_checkpoint"
    named = checkpoints.read_last_checkpoint(last) if last.is_file() else ""
    # The file has an absolute path; prefer this folder, which may be a copy.
    beside = folder / os.path.basename(named)
    if named and "://" not in named and beside.is_file():
        return str(beside)
    if named and ("://" in named or os.path.isfile(named)):
        return named
    numbered = {p: re.fullmatch(r"(?:iter|epoch)_(\d+)\.pth", p.name) for p in folder.glob("*.pth")}
    found = [(int(match[1]), str(path)) for path, match in numbered.items() if match]
    if named and not found:
        advice = checkpoints.FIX_LAST_CHECKPOINT
        raise CheckpointError(f"{str(last)!r} names {named!r}, which does not exist; {advice}")
    return max(found)[1] if found else None
