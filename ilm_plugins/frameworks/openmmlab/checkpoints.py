"""MMEngine's checkpoints: read without running what is in them, written whole or not at all."""

import ast
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from mmengine.model.weight_init import PretrainedInit
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from ... import checkpoints
from ...checkpoints import CheckpointError


def guard() -> None:
    """Have MMEngine, in this process, read and write its checkpoints as this module has it."""
    register_backend("local", WholeFiles, force=True, prefixes="")
    CheckpointLoader.register_scheme(prefixes="", loader=_load, force=True)
    allow_history()
    _check_pretrained()
    _leave_config()
    # Some releases allow getattr itself for what they load from elsewhere, and with it any code.
    if hasattr(mmengine_checkpoint, "get_torch_safe_globals"):
        mmengine_checkpoint.get_torch_safe_globals = list


@functools.cache
def allow_history() -> None:
    """Have checkpoints hold MMEngine's history of logged values, which all of its own do."""
    checkpoints.allow(f"{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}", HistoryBuffer)
    checkpoints.allow("builtins.getattr", _statistic)


def _statistic(owner: type, name: str) -> Callable:
    """How pickle spells the functions of which a HistoryBuffer keeps a list."""
    if owner is not HistoryBuffer or name.startswith("_"):
        raise ValueError("Unsupported global builtins.getattr")
    return getattr(HistoryBuffer, name)


def check_fits(filename: str, model: nn.Module, checkpoint: dict, prefix: str = "") -> None:
    """Raise CheckpointError if a checkpoint has none of the model's tensors.

    Args:
        filename: the checkpoint.
        model: what it was loaded into.
        checkpoint: its contents, with or without a ``state_dict``.
        prefix: what the names in the checkpoint begin with, and the model's do not.
    """
    state = checkpoint.get("state_dict", checkpoint)
    before = re.compile(rf"^(module\.)?{re.escape(prefix)}")
    found = {before.sub("", name): value for name, value in state.items() if before.match(name)}
    absent = (
        name
        for name, value in model.state_dict().items()
        if getattr(found.get(name), "shape", None) != value.shape
    )
    checkpoints.check_fits(filename, model, found or state, absent)


@functools.cache
def _check_pretrained() -> None:
    """Have ``init_cfg=dict(type="Pretrained")`` refuse a checkpoint of which nothing fits."""
    original = PretrainedInit.__call__

    @functools.wraps(original)
    def call(self, module):
        original(self, module)
        prefix = f"{self.prefix.rstrip('.')}." if self.prefix else ""
        contents = CheckpointLoader.load_checkpoint(self.checkpoint, "cpu", logger=None)
        check_fits(self.checkpoint, module, contents, prefix)

    PretrainedInit.__call__ = call


@functools.cache
def _leave_config() -> None:
    """Have MMEngine find no ``meta.config`` in a checkpoint: resuming, it runs that text.

    MMCV wrote it; MMEngine, which cannot resume MMCV's checkpoints, writes ``meta.cfg``.
    """
    original = CheckpointLoader.load_checkpoint

    @functools.wraps(original.__func__)
    def load(cls, *args, **options):
        contents = original(*args, **options)
        meta = contents.get("meta") if isinstance(contents, dict) else None
        if isinstance(meta, dict):
            meta.pop("config", None)
        return contents

    CheckpointLoader.load_checkpoint = classmethod(load)


def settings(text: str) -> dict[str, Any]:
    """What is set in the text of a config, as MMEngine writes it; nothing in it is run.

    Raises:
        ValueError: something in it is neither a literal nor ``dict`` of literals.
    """
    found = {}
    for line in ast.parse(text).body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name] = _literal(value)
            case _:
                raise ValueError(f"line {line.lineno} is not a setting")
    return found


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.List(elts=items):
            return [_literal(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_literal(item) for item in items)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_literal(k): _literal(v) for k, v in zip(keys, values, strict=True)}
        # MMEngine writes dict({...}) where a key is no name.
        case ast.Call(func=ast.Name(id="dict"), args=[] | [ast.Dict()] as args, keywords=keywords):
            if all(keyword.arg for keyword in keywords):
                first = _literal(args[0]) if args else {}
                return first | {keyword.arg: _literal(keyword.value) for keyword in keywords}
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"line {node.lineno} has more than literals") from None


def dicts(value: Any) -> Iterator[dict]:
    """All dicts within a part of a config."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list | tuple):
            yield from dicts(inner)


def _load(filename: str, map_location: Any = None) -> Any:
    # Wherever it is to go, what takes it copies it there.
    return checkpoints.read(filename)


class WholeFiles(LocalBackend):
    """MMEngine's local files, replaced when they are whole.

    MMEngine removes an outdated checkpoint before it writes that which follows. Here it goes when
    that is there.
    """

    outdated: list[Path] = []  # noqa: RUF012 - that of all: MMEngine makes an instance for each file

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write a file; raises CheckpointError if it cannot be."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with checkpoints.replacing(path) as file:
            file.write(obj)
        # Another file that is written meanwhile is no successor.
        while path.suffix == ".pth" and self.outdated:
            old = self.outdated.pop()
            if old != path:
                old.unlink(missing_ok=True)

    def remove(self, filepath: str | os.PathLike) -> None:
        """Remove a file; a checkpoint when the next one is there."""
        if Path(filepath).suffix == ".pth":
            self.outdated.append(Path(filepath))
        else:
            super().remove(filepath)


def latest(work_dir: str | os.PathLike) -> str | None:
    """The checkpoint that a run is to go on from, or None.

    It is what MMEngine's file ``last_checkpoint`` names; or, where a kill has left that behind, the
    newest of ``iter_N.pth`` and ``epoch_N.pth``.

    Raises:
        CheckpointError: ``last_checkpoint`` is no text, or names a missing file where there is no
            such checkpoint.
    """
    folder = Path(work_dir)
    last = folder / "last_checkpoint"
    named = checkpoints.named(last) if last.is_file() else ""
    # The file has the whole path, and the folder may be a copy.
    beside = folder / os.path.basename(named)
    if named and "://" not in named and beside.is_file():
        return str(beside)
    if named and ("://" in named or os.path.isfile(named)):
        return named
    numbered = {p: re.fullmatch(r"(?:iter|epoch)_(\d+)\.pth", p.name) for p in folder.glob("*.pth")}
    found = [(int(match[1]), str(path)) for path, match in numbered.items() if match]
    if named and not found:
        raise CheckpointError(
            f"{str(last)!r} names {named!r}, which does not exist; {checkpoints.NAME_ONE}"
        )
    return max(found)[1] if found else None
