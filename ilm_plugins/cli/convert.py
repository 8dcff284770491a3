"""The command ``convert``: convert the norms of a checkpoint file."""

import argparse
import difflib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from .. import surgery
from ..checkpoints import find_part, find_state, unwrap_state
from ..checkpoints.state_dict_for_model import complete_names
from ..checkpoints.writing import check_target, rewrite
from ..configs import resolve
from ..errors import UserError, printable, say
from ..files import check_folder, remove_partial
from ..frameworks import open_config
from ..frameworks.checkpoints import read_checkpoint
from ..frameworks.openmmlab import NAME_STAYS
from ..frameworks.registrations import Registrations
from ..layers import parse_call
from ..surgery.conversion import conversion_to

#: Converts a state dict: returns the new state dict and a report on its norms. The second argument
#: says whether the names may be ends of the model's names.
Change = Callable[[Mapping[str, Tensor], bool], tuple[dict[str, Tensor], surgery.Report]]


def run(args: argparse.Namespace) -> None:
    """Convert INPUT to OUTPUT and print what changed; UserError if no norm was converted."""
    check_target(args.input, args.output, args.overwrite)
    output = Path(os.path.realpath(args.output))
    check_folder(output.parent)
    remove_partial(output.parent, output.name)
    change = conversion(args)
    contents = read_checkpoint(args.input)
    entry, state = find_state(contents, args.input)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what check_report refuses
        state, report = change(state, bool(entry and contents.get("matching_heuristics")))
    check_report(args.input, report, entry == "state_dict" and "meta" in contents)
    check_target(args.input, args.output, args.overwrite)  # it may have appeared meanwhile
    dropped = rewrite(contents, entry, state, output)
    say(report.names() if args.names else report)
    if dropped:
        say(f"not copied: {', '.join(map(printable, dropped))}")
    say(f"{args.output} is written")


def conversion(args: argparse.Namespace) -> Change:
    """Return the conversion that the options ask for; the model of --config-file is built now."""
    for given, option, needed, other in (
        (args.overrides, " ".join(args.overrides), args.config_file, "--config-file"),
        (args.imports, "--import", args.config_file, "--config-file"),
        (args.datasets, "--dataset", args.config_file, "--config-file"),
        (args.part, f"--part {args.part}", args.config_file, "--config-file"),
        (args.replacing, f"--replacing {args.replacing}", args.to, "--to"),
        (args.match, "--match", not args.config_file, "--to or --revert"),
    ):
        if given and not needed:
            raise UserError(f"{option} needs {other}; give that, too, or leave it out")
    if args.config_file is not None:
        Registrations.of_options(args.imports, args.datasets).register(resolve(args.config_file))
        opened = open_config(args.config_file, args.overrides)
        model = opened.build_model()
        say(f"norms of the model: {opened.describe_norms(model)}")
        parts = dict(model.named_modules())
        if (args.part or "") not in parts:
            near = difflib.get_close_matches(args.part, filter(None, parts), n=3, cutoff=0)
            raise UserError(
                f"--part {args.part}: the model has no such part; near ones are {', '.join(near)}"
            )
        return lambda state, by_end: fit(state, parts[args.part or ""], args.part, by_end)
    if args.revert:
        return lambda state, _: surgery.revert_state(state, match=args.match)
    key, options = parse_call(args.to)
    conversion_to(key, args.replacing, options)  # mistakes are reported before INPUT is read
    return lambda state, _: surgery.convert_state(
        state, key, match=args.match, replacing=args.replacing, **options
    )


def fit(
    state: Mapping[str, Tensor], model: nn.Module, part: str | None, by_end: bool
) -> tuple[dict[str, Tensor], surgery.Report]:
    """Convert a state dict to the norms of a model; UserError if it is of a part of the model."""
    if by_end:
        state = complete_names(unwrap_state(state, model), model)
    if inner := find_part(state, model):
        whole, name = part or "the whole model", f"{part}.{inner}" if part else inner
        raise UserError(f"INPUT is not of {whole}, but of its {name}; give --part {name}")
    return surgery.fit_state(state, model)


def check_report(source: Path, report: surgery.Report, is_openmmlab: bool) -> None:
    """Raise UserError if no norm was converted, or OpenMMLab has other names for the new norms."""
    if not report.converted:
        reasons = "; ".join(dict.fromkeys([*report.left.values(), *report.notes]))
        reasons = reasons or "it has no norm to convert"
        raise UserError(f"nothing in {str(source)!r} was converted ({reasons})")
    if is_openmmlab and (names := report.notes.get(NAME_STAYS)):
        raise UserError(
            f"INPUT is OpenMMLab's, where norms have names of their type: {len(names)} names, such "
            f"as {names[0]!r}, must change with it; give --config-file in place of --to or --revert"
        )
