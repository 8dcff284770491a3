"""MMEngine's checkpoints: read without running the code in them, written whole or not at all."""

import ast
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import wrapt
from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from ... import checkpoints


def use_safe_checkpoints() -> None:
    """Have MMEngine read local checkpoints by :func:`.checkpoints.read`, and replace files whole.

    This holds until the process ends; calling the function again does no harm.
    """
    register_backend("local", AtomicFiles, force=True, prefixes="")
    CheckpointLoader.register_scheme(prefixes="", loader=_load, force=True)
    # torch.hub, which MMEngine calls for a URL, reads the file itself.
    torch.serialization.add_safe_globals(checkpoints.data_types())
    # Some releases allow getattr when they load checkpoints, and getattr can reach any code.
    if hasattr(mmengine_checkpoint, "get_torch_safe_globals"):
        mmengine_checkpoint.get_torch_safe_globals = list
    _drop_configs()


def _load(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint, always to the CPU; the model copies it to its device."""
    return checkpoints.read(filename)


@functools.cache
def _drop_configs() -> None:
    wrapt.wrap_function_wrapper(CheckpointLoader, "load_checkpoint", _load_without_config)


def _load_without_config(wrapped: Callable, _: type, args: tuple, options: dict) -> Any:
    """Load a checkpoint without ``meta.config`` of MMCV, code that MMEngine runs to resume."""
    contents = wrapped(*args, **options)
    meta = contents.get("meta") if isinstance(contents, dict) else None
    if isinstance(meta, dict):
        meta.pop("config", None)
    return contents


def check_fits(filename: str, model: nn.Module, checkpoint: dict) -> None:
    """Raise CheckpointError if a checkpoint has none of a model's tensors."""
    state = checkpoints.unwrap_state(checkpoint.get("state_dict", checkpoint), model)
    checkpoints.check_fits(filename, model, checkpoints.find_absent(state, model))


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


class AtomicFiles(LocalBackend):
    """MMEngine's backend for local files; a file is replaced only when the new one is complete.

    MMEngine removes an outdated checkpoint before it writes the next one; here it stays till then.
    """

    outdated: list[Path] = []  # noqa: RUF012 - shared: MMEngine makes an instance for each file

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
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

    MMEngine's file ``last_checkpoint`` names it; else it is the one with the largest number.
    """
    folder = Path(work_dir)
    last = folder / "last_checkpoint"
    # A kill may leave the file empty. It has an absolute path; this folder may be a copy.
    named = last.read_text(encoding="utf-8").strip() if last.is_file() else ""
    beside = folder / os.path.basename(named)
    if named and "://" not in named and beside.is_file():
        return str(beside)
    if "://" in named or os.path.isfile(named):
        return named
    numbered = {p: re.fullmatch(r"(?:iter|epoch)_(\d+)\.pth", p.name) for p in folder.glob("*.pth")}
    found = [(int(match[1]), str(path)) for path, match in numbered.items() if match]
    return max(found)[1] if found else None
