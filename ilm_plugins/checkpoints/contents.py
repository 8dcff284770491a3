"""Find the state dict in a checkpoint, check that it fits a model, and clean its names."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.optim import Optimizer

from ..errors import CheckpointError

#: Keys under which frameworks store the state dict; a checkpoint without them must itself be one.
STATE_KEYS = ("model", "state_dict")
#: Values whose names have these endings must be tensors or arrays.
_TENSORS = (".weight", ".bias", ".running_mean", ".running_var")
#: Advice for an invalid file ``last_checkpoint``.
FIX_LAST_CHECKPOINT = "write a checkpoint's name into it, or remove it"


def check_state(
    contents: Any, path: str | os.PathLike, entries: Iterable[str] = STATE_KEYS
) -> None:
    """Raise CheckpointError unless a checkpoint holds a state dict of dense tensors or arrays.

    At least one value must be a tensor or an array, all names must be strings, and each value must
    pass :func:`to_dense`.

    Args:
        contents: the loaded checkpoint.
        path: the checkpoint's file, for the message.
        entries: keys that may hold the state dict; the first key that is present counts, and
            without any of them ``contents`` itself must be the state dict.
    """
    state = contents
    if isinstance(contents, Mapping):
        state = next((contents[entry] for entry in entries if entry in contents), contents)
    named = isinstance(state, Mapping) and all(isinstance(key, str) for key in state)
    if not named or not any(hasattr(value, "shape") for value in state.values()):
        raise CheckpointError(describe_missing_state(contents, path, entries))
    for key, value in state.items():
        to_dense(value, key, path)


def to_dense(value: Any, key: Any, path: str | os.PathLike) -> Any:
    """Check that a value of a state dict is dense, and return it.

    An expanded tensor (with a stride of 0) is returned as a copy of its full size, and a lazy
    conjugate or negative view as a tensor with its values; any other value as the same object.

    Args:
        value: a tensor, an array, or any other object.
        key: its name in the state dict.
        path: the checkpoint's file, for the message.

    Raises:
        CheckpointError: the value is a meta, sparse, quantized or nested tensor; or it is neither
            tensor nor array although it is named like a weight, bias or running statistic.
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
    elif not hasattr(value, "shape") and str(key).endswith(_TENSORS):
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


def describe_missing_state(
    contents: Any, path: str | os.PathLike, entries: Iterable[str] = STATE_KEYS
) -> str:
    """Return the error message for a checkpoint without a state dict; see :func:`check_state`."""
    held = ", ".join(map(repr, contents)) if isinstance(contents, Mapping) else str(type(contents))
    return (
        f"{str(path)!r} holds no state dict, neither under {' or '.join(map(repr, entries))} nor "
        f"at the top, but {held[:120] or 'nothing'}; give a checkpoint of torch, detectron2 or "
        "MMEngine"
    )


def check_fits(
    path: str | os.PathLike, model: nn.Module, found: Iterable[str], absent: Iterable[str]
) -> None:
    """Raise CheckpointError if not a single tensor of a model is in a checkpoint.

    A model without tensors passes. The checkpoint is not read; the caller has compared it.

    Args:
        path: the checkpoint's file, for the message.
        model: the model that loads the checkpoint.
        found: names of the tensors in the checkpoint, for the message.
        absent: names of the model's tensors that the checkpoint lacks or has in another shape.
    """
    own = _required(model)
    if own and own.keys() <= {*absent}:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is of another model: it has none of the {len(own)} tensors "
            f"such as {next(iter(own))}, but {next(iter(found), 'nothing')}; give one of this model"
        )


def read_last_checkpoint(last: str | os.PathLike) -> str:
    """Return the checkpoint's name that a file ``last_checkpoint`` contains; "" if it is empty.

    Raises:
        CheckpointError: the file is not UTF-8 text.
        FileNotFoundError: the file does not exist.
    """
    try:
        return Path(last).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise CheckpointError(f"{str(last)!r} is not text; {FIX_LAST_CHECKPOINT}") from None


def copy_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shallow copy of a state dict, with torch's metadata.

    The metadata, the attribute ``_metadata`` if there is one, has the version of each module. Torch
    takes a state dict without it for one of the oldest version.

    Args:
        state: names -> tensors; the copy has the same tensor objects.
    """
    copy = OrderedDict(state)
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        copy._metadata = OrderedDict(versions)
    return copy


#: Prefixes that DistributedDataParallel and torch.compile add to all names of a model.
_WRAPPERS = ("module.", "_orig_mod.")


def unwrap_state(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a shallow copy of a state dict without the prefixes "module." and "_orig_mod.".

    DistributedDataParallel and torch.compile add these prefixes to the names of a model.

    Args:
        state: names -> tensors; a prefix is removed only if all names have it.
        model: the model that is to load the state dict; prefixes stay if any of the names is one of
            the model's own.
    """
    state = copy_state(state)
    for prefix in _WRAPPERS * 2:  # wrappers may be nested in either order
        wrapped = all(str(name).startswith(prefix) for name in state)
        if wrapped and not model.state_dict().keys() & state.keys():
            consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def find_absent(state: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return the names of a model's tensors that a state dict lacks or has in another shape.

    BatchNorm's ``num_batches_tracked`` may be absent, as it is from older checkpoints.
    """
    own = _required(model)
    return [name for name, t in own.items() if getattr(state.get(name), "shape", None) != t.shape]


def _required(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict without BatchNorm's counts of batches."""
    state = model.state_dict()
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


def check_resumes(
    path: str | os.PathLike,
    state: dict[str, Any],
    model: nn.Module,
    optimizers: Iterable[tuple[Any, Optimizer]],
    setting: str,
) -> None:
    """Load the optimizers' states, and raise CheckpointError unless training can resume from them.

    Every tensor of the model must be in the checkpoint in its shape; only num_batches_tracked may
    be missing. The model is not changed. If it does not fit, no optimizer is changed; if an
    optimizer's state does not fit, that optimizer and those before it may have been.

    Args:
        path: the checkpoint's file, for the message.
        state: the model's state dict in the checkpoint.
        model: the model that the config builds.
        optimizers: pairs of an optimizer's state dict in the checkpoint and the optimizer that the
            config builds, into which the state dict is loaded.
        setting: the option that takes a checkpoint as initial weights instead, for the message.
    """
    state = unwrap_state(state, model)
    if lacking := find_absent(state, model):
        name = lacking[0]
        found, own = getattr(state.get(name), "shape", None), model.state_dict()[name].shape
        why = f"{name} is " + (f"{(*found,)} in it, not {(*own,)}" if found else "missing in it")
        why += f", and {len(lacking) - 1} others do not fit" if len(lacking) > 1 else ""
    else:
        why = next(filter(None, (_load_optimizer(*pair) for pair in optimizers)), None)
    if why:
        raise CheckpointError(
            f"checkpoint {str(path)!r} does not fit this config ({why}); resume with the config of "
            f"that run, or give another output folder and the checkpoint as {setting}"
        )


def _load_optimizer(state: Any, optimizer: Optimizer) -> str | None:
    """Load a state dict into an optimizer; return why it does not fit, or None if it does.

    The optimizer is changed in place, perhaps also by a state dict that does not fit.
    """
    options = {*optimizer.defaults}
    try:
        optimizer.load_state_dict(state)
    except Exception as error:  # optimizers raise different types
        told = " ".join(str(error).split())
        return f"its optimizer's state is another's: {type(error).__name__}: {told}"
    for group in optimizer.param_groups:
        # load_state_dict replaced the group's options by the file's; torch adds some it may lack.
        if lacking := options - group.keys():
            return f"its optimizer's state is another's: it has no {', '.join(sorted(lacking))}"
        for parameter in group["params"]:
            for name in ("momentum_buffer", "exp_avg"):
                value = optimizer.state.get(parameter, {}).get(name)
                if isinstance(value, Tensor) and value.shape != parameter.shape:
                    return f"its optimizer's {name} is of other parameters"
    return None
