"""State dicts in checkpoints: where they are, whether they fit a model, their names."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import CheckpointError

#: Keys of the state dict in the frameworks' checkpoints; without one the checkpoint itself is it.
STATES = ("model", "state_dict")
#: Values under names with these endings must be tensors.
_TENSORS = (".weight", ".bias", ".running_mean", ".running_var")
#: Advice for an invalid file ``last_checkpoint``.
NAME_ONE = "write a checkpoint's name into it, or remove it"


def check_state(contents: Any, path: str | os.PathLike, entries: Iterable[str] = STATES) -> None:
    """Raise CheckpointError unless a checkpoint holds a state dict of dense tensors or arrays.

    Args:
        contents: of the checkpoint.
        path: the file, for the message.
        entries: keys of the state dict; the first that exists counts, or else the top level.
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
    """Return a value of a state dict, as a copy if it is an expanded tensor.

    Args:
        value: a tensor, an array, or any other object, which is returned unchanged.
        key: its name in the state dict.
        path: the file, for the message.

    Raises:
        CheckpointError: the value is a meta, sparse, quantized or nested tensor; or it is neither
            tensor nor array under the name of a weight, bias or running statistic.
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
    contents: Any, path: str | os.PathLike, entries: Iterable[str] = STATES
) -> str:
    """The message for a checkpoint without a state dict; see :func:`check_state`."""
    held = ", ".join(map(repr, contents)) if isinstance(contents, Mapping) else type(contents)
    return (
        f"{str(path)!r} holds no state dict, neither under {' or '.join(map(repr, entries))} nor "
        f"at the top, but {str(held)[:120]}; give a checkpoint of torch, detectron2 or MMEngine"
    )


def check_fits(
    path: str | os.PathLike, model: nn.Module, found: Iterable[str], absent: Iterable[str]
) -> None:
    """Raise CheckpointError if a checkpoint has none of a model's tensors.

    Args:
        path: the file, for the message.
        model: the model that loads it.
        found: names in the checkpoint.
        absent: names of the model's tensors that the checkpoint lacks or has in another shape.
    """
    own = model.state_dict().keys()
    if own and own <= {*absent}:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is of another model: it has none of the {len(own)} tensors "
            f"such as {next(iter(own))}, but {next(iter(found), 'nothing')}; give one of this model"
        )


def named(last: str | os.PathLike) -> str:
    """Return the name in a file ``last_checkpoint``, which may be empty.

    Raises:
        CheckpointError: the file is not text.
    """
    try:
        return Path(last).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise CheckpointError(f"{str(last)!r} is not text; {NAME_ONE}") from None


def copy_state(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Copy a state dict with torch's metadata, which has the version of each module.

    A state dict without versions loads as one of the oldest version.

    Args:
        state: names -> tensors, which are not copied.
        prefix: removed from all names.
    """
    copy = OrderedDict((_without(prefix, name), value) for name, value in state.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        # Names of modules end without a dot.
        modules = ((_without(prefix, f"{name}."), of) for name, of in versions.items())
        copy._metadata = OrderedDict((name.removesuffix("."), of) for name, of in modules)
    return copy


def _without(prefix: str, name: Any) -> Any:
    return name.removeprefix(prefix) if isinstance(name, str) else name


#: Prefixes of all names in a wrapped model: of DistributedDataParallel, and of torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")


def unwrap_state(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Copy a state dict, without the prefixes of a wrapped model.

    Args:
        state: names -> tensors.
        model: the model to load it into; a prefix that its own names have stays.
    """
    for prefix in _WRAPPERS * 2:  # one in the other, in either order
        wrapped = state and all(str(name).startswith(prefix) for name in state)
        if wrapped and not model.state_dict().keys() & state.keys():
            state = copy_state(state, prefix)
    return copy_state(state)


def unwrap_name(name: Any) -> Any:
    """A name in a state dict without the prefixes of a wrapped model."""
    while isinstance(name, str) and name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def find_absent(state: dict[str, Any], model: nn.Module) -> list[str]:
    """Names of a model's tensors that a state dict lacks or has in another shape."""
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
    state = unwrap_state(state, model)
    # Counts of batches are the one thing that frameworks do without.
    lacking = [
        name for name in find_absent(state, model) if not name.endswith("num_batches_tracked")
    ]
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
