"""The command ``convert``: convert the norms of a checkpoint file."""

import argparse
import difflib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from torch import Tensor, nn

from .. import surgery
from ..checkpoints import (
    FORMATS,
    INDEX,
    Index,
    complete_names,
    create,
    dump,
    find_state,
    format_of,
    is_index,
    names_around,
    read_index,
    read_metadata,
    rename_shard,
    to_array,
    unwrap_state,
    without_index,
    write,
    write_index,
)
from ..errors import UserError, printable
from ..frameworks import open_config
from ..frameworks.folders import check_folder, disk_errors
from ..frameworks.framework_checkpoints import read_checkpoint
from ..frameworks.openmmlab import NAME_STAYS
from ..layers import parse_norm
from ..surgery.common import source_norm
from ..surgery.stored import find_cut
from . import exit_on_sigterm

#: Entries beside the state dict by which detectron2 reads a checkpoint; they are copied.
COPIED = ("__author__", "matching_heuristics")

#: Converts a state dict: returns the new state dict and a report on its norms. The second argument
#: says whether the names may be ends of the model's names.
Change = Callable[[Mapping[str, Tensor], bool], tuple[dict[str, Tensor], surgery.Report]]


def run(args: argparse.Namespace) -> None:
    """Convert INPUT to OUTPUT and print what changed; UserError if no norm was converted."""
    exit_on_sigterm()  # so that a partial file is removed
    check_output(args.input, args.output, args.overwrite)
    places = places_of_shards(args.input, args.output) if is_index(args.output) else {}
    change = conversion(args)
    contents = read_checkpoint(args.input)
    entry, state = find_state(contents, args.input)
    check_whole(args.input, state)
    state, report = change(state, bool(entry and contents.get("matching_heuristics")))
    if not report.converted:
        reasons = "; ".join(dict.fromkeys([*report.left.values(), *report.notes]))
        reasons = reasons or "it has no norm to convert"
        raise UserError(f"nothing in {str(args.input)!r} was converted ({reasons})")
    check_names(contents, entry, report)
    beside = {} if entry is None else {k: v for k, v in contents.items() if k != entry}
    target = without_index(args.output) if places else args.output
    kept, kind, metadata = {}, format_of(target), read_metadata(args.input)
    if kind == "safetensors" or places:  # holds only tensors and metadata
        beside |= {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    else:
        kept = {key: beside[key] for key in COPIED if key in beside}
        meta = beside.get("meta")
        if isinstance(meta, Mapping) and "dataset_meta" in meta:  # MMEngine's names of classes
            kept["meta"] = {"dataset_meta": meta["dataset_meta"]}
    if kind != "safetensors":
        beside |= metadata
    contents = arrange(state, entry, kept, "safetensors" if places else kind)
    with disk_errors(target.parent):
        if places:
            write_shards(contents, read_index(args.input), places, args.output, metadata)
        elif args.overwrite:
            write(contents, target, metadata)
        else:
            create({target: lambda file: dump(contents, file, target, metadata)})
    print(report.names() if args.names else report)
    if dropped := ", ".join(printable(key) for key in beside if key not in kept):
        print(f"not copied: {dropped}")
    print(f"{args.output} is written")


def places_of_shards(source: Path, target: Path) -> dict[str, Path]:
    """Return the new path of each shard of an index; UserError if one exists."""
    if not is_index(source):
        raise UserError(f"OUTPUT {str(target)!r} is an index, INPUT is none; give a file as OUTPUT")
    shards = dict.fromkeys(read_index(source).weight_map.values())
    places = {shard: target.with_name(rename_shard(shard, source, target)) for shard in shards}
    if existing := [path for path in places.values() if os.path.lexists(path)]:
        raise UserError(
            f"{str(existing[0])!r}, a shard of OUTPUT, exists, and shards are never replaced; give "
            "another name or folder"
        )
    return places


def write_shards(
    tensors: Mapping[str, Tensor],
    index: Index,
    places: Mapping[str, Path],
    target: Path,
    metadata: Mapping[str, str],
) -> None:
    """Write tensors to new shards, and their index last; each tensor stays in its old shard."""
    parts: dict[Path, dict[str, Tensor]] = defaultdict(dict)
    for name, shard in index.place(tensors).items():
        parts[places[shard]][name] = tensors[name]
    weight_map = {name: path.name for path, part in parts.items() for name in part}
    contents = write_index(Index(weight_map, index.metadata), tensors)
    writers: dict[Path, Callable[[IO], Any]] = {
        path: partial(dump, part, path=path, metadata=metadata) for path, part in parts.items()
    }
    create({**writers, target: lambda file: file.write(contents)})


def check_output(source: Path, target: Path, overwrite: bool) -> None:
    """Raise UserError unless OUTPUT can be written, is not INPUT, and has a known ending."""
    exists = os.path.exists(target)
    if is_index(target):
        if format_of(without_index(target)) not in ("torch", "safetensors"):
            raise UserError(
                f"OUTPUT {str(target)!r} must end with .safetensors{INDEX} or .bin{INDEX}"
            )
    elif format_of(target) is None:
        raise UserError(f"OUTPUT {str(target)!r} must end with {', '.join(FORMATS)}")
    if exists and source.exists() and target.samefile(source):
        raise UserError(f"OUTPUT {str(target)!r} is INPUT; give another file")
    if exists and is_index(target):
        raise UserError(
            f"OUTPUT {str(target)!r} exists, and an index is never replaced; give another name"
        )
    if exists and not overwrite:
        raise UserError(f"OUTPUT {str(target)!r} exists; add --overwrite to replace it")
    # Of a link, the target is replaced.
    folder = Path(os.path.realpath(target)).parent
    if not folder.is_dir():
        raise UserError(f"OUTPUT {str(target)!r} is not in a folder that exists; create it first")
    if target.is_dir():
        raise UserError(f"OUTPUT {str(target)!r} is a folder; give a file")
    check_folder(folder)


def check_whole(source: Path, state: Mapping[str, Any]) -> None:
    """Raise UserError if a file is a shard whose norms have tensors in other shards."""
    whole = names_around(source)
    if whole is None:
        return
    names = [name for name in state if isinstance(name, str)]
    if missing := find_cut(names, whole):
        listed = ", ".join([*missing[:8], *(["..."] if missing[8:] else [])])
        raise UserError(
            f"INPUT {str(source)!r} is one shard of a checkpoint, and cuts norms, which lack "
            f"{listed}; give the index of all shards (*{INDEX}) as INPUT"
        )


def conversion(args: argparse.Namespace) -> Change:
    """Return the conversion that the options ask for; the model of --config-file is built now."""
    for given, option, needed, other in (
        (args.overrides, " ".join(args.overrides), args.config_file, "--config-file"),
        (args.part, f"--part {args.part}", args.config_file, "--config-file"),
        (args.replacing, f"--replacing {args.replacing}", args.to, "--to"),
        (args.match, "--match", not args.config_file, "--to or --revert"),
    ):
        if given and not needed:
            raise UserError(f"{option} needs {other}; give that, too, or leave it out")
    if args.config_file is not None:
        model = open_config(args.config_file, args.overrides).build_model()
        parts = dict(model.named_modules())
        if (args.part or "") not in parts:
            near = difflib.get_close_matches(args.part, filter(None, parts), n=3, cutoff=0)
            raise UserError(
                f"--part {args.part}: the model has no such part; near ones are {', '.join(near)}"
            )
        return lambda state, by_end: fit(state, parts[args.part or ""], args.part, by_end)
    if args.revert:
        return lambda state, _: surgery.revert_state(state, match=args.match)
    key, options = parse_norm(args.to) or (args.to, {})
    source_norm(key, args.replacing, options)  # mistakes are reported before INPUT is read
    return lambda state, _: surgery.convert_state(
        state, key, match=args.match, replacing=args.replacing, **options
    )


def check_names(contents: Mapping[str, Any], entry: str | None, report: surgery.Report) -> None:
    """Raise UserError if norms of an OpenMMLab checkpoint would keep names of another type."""
    names = report.notes.get(NAME_STAYS)
    if names and entry == "state_dict" and "meta" in contents:
        raise UserError(
            f"INPUT is OpenMMLab's, where norms have names of their type: {len(names)} names, such "
            f"as {names[0]!r}, must change with it; give --config-file in place of --to or --revert"
        )


def fit(
    state: Mapping[str, Tensor], model: nn.Module, part: str | None, by_end: bool
) -> tuple[dict[str, Tensor], surgery.Report]:
    """Convert a state dict to the norms of a model; UserError if it is of a part of the model.

    Args:
        part: the name of ``model`` in the whole model, or None.
        by_end: whether names may be ends of the model's names.
    """
    state = unwrap_state(state, model)
    if by_end:
        state = complete_names(state, model)
    if not model.state_dict().keys() & state.keys():
        for name, child in model.named_modules():
            if name and child.state_dict().keys() & state.keys():
                whole, name = part or "the whole model", ".".join(filter(None, (part, name)))
                raise UserError(f"INPUT is not of {whole}, but of its {name}; give --part {name}")
    return surgery.fit_state(state, model)


def arrange(
    state: Mapping[str, Any], entry: str | None, kept: Mapping[str, Any], kind: str
) -> dict[str, Any]:
    """Return the contents of a file of a format: a state dict, and the entries kept beside it."""
    if kind == "safetensors":
        return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if kind == "pickle":
        arrays = {k: to_array(v, repr(k)) if isinstance(v, Tensor) else v for k, v in state.items()}
        # Without an author, detectron2 reads the file as one of Caffe2.
        return {"__author__": "ilm_plugins", **kept, "model": arrays}
    return state if entry is None else {**kept, entry: state}
