"""The command line ``tools/convert.py``: convert the norms of a checkpoint file."""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import surgery
from ..checkpoints import (
    FORMATS,
    STATE_KEYS,
    copy_state,
    describe_missing_state,
    loading,
    read,
    read_metadata,
    to_dense,
    unwrap_state,
    write,
)
from ..errors import UserError
from ..frameworks import installed
from ..frameworks.command import (
    add_traceback,
    as_user_error,
    building,
    command,
    config_file,
    example,
    positive,
    progress,
)
from ..layers import NORMS, parse_norm
from ..layers.options import check_known
from . import train_net

#: Entries of a checkpoint that belong to the training before; conversion drops them.
_TRAINING = {
    "amp",
    "amp_scaler",
    "ema_state_dict",
    "epoch",
    "grad_scaler",
    "iteration",
    "lr_scheduler",
    "lr_schedulers",
    "message_hub",
    "model_ema",
    "optimizer",
    "optimizer_states",
    "optimizers",
    "param_schedulers",
    "scaler",
    "scheduler",
    "state_dict_ema",
    "trainer",
}
#: Those of MMEngine's and MMCV's ``meta``.
_META = {"cfg", "config", "epoch", "hook_msgs", "iter", "seed"}
#: Entries beside the model that detectron2 reads from a .pkl file.
_PKL = ("__author__", "matching_heuristics")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: parse ``argv`` (``sys.argv[1:]`` if None) and convert a checkpoint.

    Returns:
        The exit status: 0; 2 after any error, printed as one line; 128 + its number after a signal.

    Raises:
        SystemExit: the command line is invalid, or asks for help.
    """
    args = parser().parse_intermixed_args(argv)
    return command(lambda: run(args), args, resumes=False)


def run(args: argparse.Namespace) -> None:
    """Convert the file ``args.input`` to ``args.output``; print which norms and entries changed.

    Raises:
        UserError: see :func:`change_of` and :func:`convert_file`; OptionError and RunError are
            subclasses.
    """
    with loading(unsafe=args.unsafe):
        report, dropped = convert_file(args.input, args.output, change_of(args), args.overwrite)
    print(report)
    if dropped:
        names = ", ".join(dropped)
        print(f"not copied (of the training, or this format cannot store it): {names}")
    print(f"{args.output} is written")


def parser() -> argparse.ArgumentParser:
    """Return the parser: INPUT, OUTPUT, target norms, layers, and options such as --unsafe."""
    p = argparse.ArgumentParser(
        description="Convert the norms of a checkpoint: .pth of torch, detectron2 or MMEngine,\n"
        ".pkl of detectron2's model zoo, .safetensors.",
        epilog=example("convert gn.pth ilmgn.pth --to ILMGN --match 'roi_heads.box_head.*'"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("input")
    p.add_argument("output", help="another file, in the format that its name ends with")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--config-file",
        type=config_file,
        metavar="FILE",
        help="convert to the norms of this model: a config as of the command train",
    )
    what.add_argument(
        "--to", metavar="NORM", help=f"{', '.join(NORMS)}; options as in 'ILMGN(key_group_size=8)'"
    )
    what.add_argument(
        "--revert", action="store_true", help="to the plain norms, where layers still are these"
    )
    p.add_argument(
        "--match",
        action="append",
        metavar="PATTERN",
        help="with --to and --revert: names of norms, * for any characters; can be given again",
    )
    p.add_argument(
        "--replacing",
        choices=("BN",),
        help="with --to ILMGN, ILMIN, ILMLN, AssocNorm or AN: replace BatchNorm; outputs change",
    )
    p.add_argument(
        "--recalibrate",
        metavar="IMAGES",
        help="with --config-file: run the converted model on a folder or a packed .npz of images, "
        "and store EN's, SN's and SSN's running statistics of them",
    )
    p.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="with --recalibrate: as in training; default: of the config's test_dataloader; in "
        "detectron2 1",
    )
    p.add_argument(
        "--part",
        metavar="NAME",
        help="with --config-file: INPUT is of this part of the model, such as backbone",
    )
    p.add_argument(
        "--summed-batches",
        type=int,
        metavar="N",
        help="the input is of SN's released code with using_moving_average=False, over N batches",
    )
    p.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it is there")
    p.add_argument(
        "--unsafe",
        "--unsafe-checkpoints",
        action="store_true",
        help="run code that INPUT or a yaml config holds",
    )
    add_traceback(p)
    p.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="with --config-file: overrides of it"
    )
    return p


#: Converts a state dict: returns the new state dict and a report on its norms.
Change = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], surgery.Report]]


def change_of(args: argparse.Namespace) -> Change:
    """Return the conversion function that the command line asks for.

    With ``--config-file`` the model is built in this call. The returned function leaves its
    argument unchanged, and raises OptionError for an unknown norm or option of ``--to``, a
    ``--match`` that fits no norm or an invalid ``--summed-batches``; and UserError if
    ``--summed-batches`` or the model does not suit the state dict.

    Raises:
        UserError: options contradict each other, a config cannot be read or its model cannot be
            built, ``--part`` names no module, ``--to`` cannot be parsed or has an unknown option,
            or there are no images to recalibrate with.
    """
    change = _conversion(args)
    if args.summed_batches is None:
        return change
    return lambda state: change(_average_sums(state, args.summed_batches))


def _conversion(args: argparse.Namespace) -> Change:
    """Return the conversion of ``--config-file``, ``--to`` or ``--revert``.

    See :func:`change_of`; only ``--summed-batches`` is not applied here.

    Raises:
        UserError: as in :func:`change_of`.
    """
    for given, option, needed, other in (
        (args.overrides, " ".join(args.overrides), args.config_file, "--config-file"),
        (args.part, f"--part {args.part}", args.config_file, "--config-file"),
        (args.recalibrate, f"--recalibrate {args.recalibrate}", args.config_file, "--config-file"),
        (args.replacing, f"--replacing {args.replacing}", args.to, "--to"),
        (args.batch_size, f"--batch-size {args.batch_size}", args.recalibrate, "--recalibrate"),
    ):
        if given and not needed:
            raise UserError(f"{option} needs {other}; give that, too, or leave it out")
    if args.config_file is not None:
        if args.match:
            raise UserError("--match with --config-file: the config says which norms; leave it out")
        if args.part and args.recalibrate:
            raise UserError(
                f"--recalibrate with --part {args.part}: the model's other parts would have random "
                "weights; give a checkpoint of the whole model"
            )
        return _conversion_of_model(args)
    if args.revert:
        return lambda state: surgery.revert_state(state, match=args.match)
    key, options = parse_norm(args.to) or (args.to, {})
    if key in NORMS:
        check_known(NORMS[key], options)
    return lambda state: surgery.convert_state(
        state, key, match=args.match, replacing=args.replacing, **options
    )


def _conversion_of_model(args: argparse.Namespace) -> Change:
    """Build the model of ``--config-file``; return the function that converts a state dict to it.

    The function fits the state dict to the part ``--part``, and recalibrates if asked.

    Raises:
        UserError: as in :func:`change_of`.
    """
    if args.recalibrate:
        inference = load_inference(args.config_file, args.overrides)
        model = inference.model.eval()
    else:
        model = build_model(args.config_file, args.overrides)
    with as_user_error(f"--part {args.part}", "give the name of a module in the model"):
        part = model.get_submodule(args.part or "")
    if not args.recalibrate:
        return lambda state: _fit_to_model(state, part, args.part)
    from ..data.images import open_images  # needs numpy and Pillow

    images = open_images(args.recalibrate)
    batches = progress(images.batches(args.batch_size or inference.batch_size), len(images))
    return lambda state: _recalibrate(state, part, batches, inference.forward)


def _fit_to_model(
    state: Mapping[str, Tensor], model: nn.Module, part: str | None = None
) -> tuple[dict[str, Tensor], surgery.Report]:
    """Convert a state dict to the norms of a model, by :func:`ilm_plugins.surgery.fit_state`.

    ``part`` is the name of ``model`` in the whole model.

    Returns:
        A new state dict without prefixes of wrappers, and a report on its norms.

    Raises:
        UserError: the state dict fits only a submodule of the model, such as its backbone.
    """
    state = unwrap_state(state, model)
    if not model.state_dict().keys() & state.keys():
        for name, child in model.named_modules():
            if name and child.state_dict().keys() & state.keys():
                whole, name = part or "the whole model", ".".join(filter(None, (part, name)))
                raise UserError(f"INPUT is not of {whole}, but of its {name}; give --part {name}")
    return surgery.fit_state(state, model)


def _recalibrate(
    state: Mapping[str, Tensor],
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any],
) -> tuple[dict[str, Tensor], surgery.Report]:
    """Convert a state dict to a model's norms; measure running statistics of EN, SN and SSN again.

    Args:
        state: see :func:`_fit_to_model`.
        model: the model into which the converted state dict is loaded.
        batches: lists of (H, W, 3) RGB uint8 images.
        forward: runs the model on a batch.

    Returns:
        A new state dict, and a report on its norms.

    Raises:
        UserError: the state dict lacks a tensor of the model, the model cannot be run on the
            images, or it has no EN, SN or SSN with running statistics.
    """
    state, report = _fit_to_model(state, model)
    own = model.state_dict()
    unfit = [name for name in report.left if name in own]
    if report.missing or unfit:
        raise UserError(
            f"--recalibrate: INPUT has no matching {(report.missing + unfit)[0]}, "
            "and statistics of random weights are useless; give a checkpoint of the whole model"
        )
    model.load_state_dict(state, strict=False)
    with as_user_error(
        "--recalibrate: the model cannot be run on the images", "try --batch-size 1"
    ):
        of_images = surgery.recalibrate(model, batches, forward)
    own = model.state_dict()
    state |= {name: own[name] for name in own if name.rpartition(".")[2].startswith("running_")}
    for name, words in of_images.converted.items():
        report.converted[name] = ", ".join(filter(None, [report.converted.get(name), words]))
    report.left |= of_images.left
    return state, report


def _average_sums(state: Mapping[str, Tensor], batches: int) -> dict[str, Tensor]:
    """Return a state dict in which SN's summed statistics are divided by a number of batches.

    Raises:
        UserError: the state dict has no running statistics of SN's released code.
        OptionError: ``batches`` is less than 1.
    """
    averaged = surgery.average_sums(state, batches)
    if all(averaged[name] is value for name, value in state.items()):
        raise UserError(
            f"--summed-batches {batches}: INPUT has no running statistics of SN's released "
            "code; leave it out"
        )
    return averaged


def build_model(config_file: str, overrides: Sequence[str] = ()) -> nn.Module:
    """Build the untrained model of a detectron2 or MMEngine config, on the CPU.

    Args:
        config_file, overrides: see :func:`config_args`.

    Raises:
        UserError: the config is missing, cannot be read or defines no model, its framework is not
            installed, or its model cannot be built.
    """
    framework, args = config_args(config_file, overrides)
    train = import_module(f"ilm_plugins.frameworks.{framework}.train")
    with building(f"the model of {config_file}"):
        cfg = train.load_config(args)
        if cfg.get("model", cfg.get("MODEL")) is None:
            raise UserError(f"{config_file} does not define model; give a config of a model")
        return train.model_of(cfg)


def load_inference(config_file: str, overrides: Sequence[str] = (), device: str = "cpu") -> Any:
    """Build the untrained model of a config, with its preprocessing of images.

    The result is an :class:`ilm_plugins.frameworks.inference.Inference`.

    Args:
        config_file, overrides: see :func:`config_args`.
        device: of the model, such as "cpu" or "cuda:0".

    Raises:
        UserError: as by :func:`build_model`; or the config defines no preprocessing.
    """
    framework, args = config_args(config_file, overrides)
    args.device = device
    analyze = import_module(f"ilm_plugins.frameworks.{framework}.analyze")
    with building(f"the model of {config_file}"):
        return analyze.load(args)


def config_args(config_file: str, overrides: Sequence[str] = ()) -> tuple[str, argparse.Namespace]:
    """Return the framework of a config, and arguments that run it on the CPU.

    Args:
        config_file: path of the config.
        overrides: changes of settings, as on tools/train_net.py's command line: "KEY", "VALUE" as
            separate words for .yaml, "KEY=VALUE" for .py.

    Returns:
        "detectron2" or "openmmlab", and the parsed arguments of ``tools/train_net.py``.

    Raises:
        UserError: the config file is missing or neither .yaml nor .py, or its framework is not
            installed. The config's content and the overrides are not checked.
    """
    options = ["--config-file", config_file, "--num-gpus", "0"]
    args = train_net.parser().parse_args([*options, *overrides])
    framework = train_net.framework_of(config_file)
    train_net.check_framework(framework, args)
    return framework, args


def convert_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    change: Change,
    overwrite: bool = False,
) -> tuple[surgery.Report, list[str]]:
    """Read a checkpoint, convert its state dict, and write the result to another file.

    Args:
        source, target: the input and the output file; each suffix determines the file's format:
            .pkl, .safetensors, or any other for the format of ``torch.save``.
        change: the conversion, as :func:`change_of` returns it.
        overwrite: whether an existing ``target`` is replaced.

    Returns:
        A report on the norms; and the names of the entries that were dropped, because they depend
        on the unconverted parameters or the format cannot store them.

    Raises:
        UserError: ``source`` cannot be read or has no state dict, no norm in it was converted,
            ``target`` is ``source`` or a folder, is not in a folder that exists, or exists without
            ``overwrite``, or a tensor's dtype cannot be stored in a .pkl; errors of ``change``
            pass, too. Nothing is written.
        RunError: ``target`` cannot be written; an earlier file there is unchanged.
    """
    source, target = (Path(path).expanduser() for path in (source, target))
    # Unlike Path.exists, it returns False for an invalid name; reading or writing then fails.
    exists = os.path.exists(target)
    if exists and os.path.exists(source) and target.samefile(source):
        raise UserError(f"OUTPUT {str(target)!r} is INPUT; give another file")
    if os.path.isdir(target):
        raise UserError(f"OUTPUT {str(target)!r} is a folder; give a file")
    if target.suffix not in FORMATS:
        raise UserError(f"OUTPUT {str(target)!r} must end with {', '.join(FORMATS)}")
    if not target.parent.is_dir():
        raise UserError(f"OUTPUT {str(target)!r} is not in a folder that exists; create it first")
    if exists and not overwrite:
        raise UserError(f"OUTPUT {str(target)!r} exists; add --overwrite to replace it")
    contents = read_any(source)
    entry, state = find_state(contents, source)
    state, report = change(state)
    if not report.converted:
        reasons = "; ".join(dict.fromkeys([*report.left.values(), *report.notes]))
        reasons = reasons or "it has no norm to convert"
        raise UserError(f"nothing in {str(source)!r} was converted ({reasons}); nothing is written")
    kept, dropped = {}, []
    if entry is not None:
        others = {k: v for k, v in contents.items() if k != entry}
        kept, dropped = _split_entries(others, target.suffix)
    notes = read_metadata(source) if source.suffix == ".safetensors" else {}
    note_names = sorted(notes.keys() - {"format"})
    if note_names and target.suffix != source.suffix:
        dropped.append(f"__metadata__ ({', '.join(note_names)})")
    if target.suffix == ".safetensors":
        written = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
        dropped += [str(key) for key in state if key not in written]
    elif target.suffix == ".pkl":
        # Without an author, detectron2 reads it as a file of Caffe2.
        arrays = {key: _as_array(key, value) for key, value in state.items()}
        written = {"__author__": "ilm_plugins", **kept, "model": arrays}
    else:
        written = state if entry is None else {**kept, entry: state}
    write(written, target, notes)
    return report, dropped


def read_any(path: str | os.PathLike) -> Any:
    """Return the contents of a checkpoint, which may hold MMEngine's log of training values.

    Reads like :func:`ilm_plugins.checkpoints.read`, with a side effect: if MMEngine is installed
    and the file is neither .pkl nor .safetensors, ``torch.load`` accepts such logs from then on.

    Raises:
        CheckpointError: the file is missing or cannot be read, or its contents could run code.
    """
    if Path(path).suffix not in (".pkl", ".safetensors") and installed("mmengine"):
        from ..frameworks.openmmlab.checkpoints import allow_history

        allow_history()
    return read(path)


def find_state(contents: Any, path: os.PathLike) -> tuple[str | None, dict[str, Any]]:
    """Find the state dict in a checkpoint: under "model" or "state_dict", or at the top level.

    Args:
        contents: the loaded checkpoint; it is not changed.
        path: the file, for error messages.

    Returns:
        The key of the state dict, or None if it is the top level; and a copy of the state dict,
        with numpy arrays converted to tensors.

    Raises:
        UserError: there is no state dict.
        CheckpointError: a tensor is not dense; see :func:`ilm_plugins.checkpoints.to_dense`.
    """
    if isinstance(contents, Mapping):
        for entry in (*STATE_KEYS, None):
            found = contents if entry is None else contents.get(entry)
            if isinstance(found, Mapping):
                state = copy_state(found)
                state.update((k, to_dense(_as_tensor(v), k, path)) for k, v in found.items())
                if any(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
                    return entry, state
    raise UserError(describe_missing_state(contents, path))


def _split_entries(entries: Mapping[str, Any], suffix: str) -> tuple[dict[str, Any], list[str]]:
    """Divide the entries beside a state dict into those to keep and those to drop.

    Entries with tensors are dropped, because they may be averaged weights of unconverted norms;
    but for ``meta``, which describes classes.

    Args:
        entries: all entries of the checkpoint but its state dict.
        suffix: that of the output file; ".safetensors" cannot store any entry, ".pkl" only the two
            in ``_PKL``.

    Returns:
        The entries to keep, and the names of those to drop, such as "optimizer" and "meta.cfg".
    """
    if suffix == ".safetensors":
        return {}, [str(key) for key in entries]
    keep = {k: v for k, v in entries.items() if k == "meta" or not _has_tensors(v)}
    keep = {k: v for k, v in keep.items() if k not in _TRAINING}
    if suffix == ".pkl":
        keep = {k: v for k, v in keep.items() if k in _PKL}
    dropped = [str(k) for k in entries if k not in keep]
    if isinstance(meta := keep.get("meta"), Mapping):
        keep["meta"] = {k: v for k, v in meta.items() if k not in _META}
        dropped += [f"meta.{k}" for k in meta if k in _META]
    return keep, dropped


def _has_tensors(entry: Any) -> bool:
    """Return whether an entry holds a tensor or array, in mappings and lists of any depth.

    Single numbers, such as a best score in numpy's float64, do not count.
    """
    seen, left = set(), [entry]
    while left:
        inner = left.pop()
        if getattr(inner, "shape", ()):
            return True
        if isinstance(inner, Mapping | list | tuple) and id(inner) not in seen:
            seen.add(id(inner))
            left += inner.values() if isinstance(inner, Mapping) else inner
    return False


def _as_tensor(value: Any) -> Any:
    """Convert a numpy array or scalar to a tensor.

    Other objects, and arrays of types that torch lacks, are returned unchanged.
    """
    if isinstance(value, type) or not hasattr(value, "__array_interface__"):
        return value
    try:
        # torch takes only the native byte order.
        return torch.as_tensor(value.astype(value.dtype.newbyteorder("=")))
    except TypeError:
        return value


def _as_array(key: str, value: Any) -> Any:
    """Convert a tensor to a numpy array; return any other value unchanged.

    Raises:
        UserError: numpy lacks the tensor's dtype, such as bfloat16; the message has ``key``.
    """
    if not isinstance(value, Tensor):
        return value
    try:
        return value.detach().numpy()
    except TypeError as error:
        raise UserError(f"{key} is of {value.dtype}, which .pkl cannot hold; write .pth") from error
