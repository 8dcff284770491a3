"""The command ``compare``: train a config or a script with several norms; report differences."""

import argparse
import os
import shlex
from collections import defaultdict

from ..configs import resolve
from ..errors import UserError
from ..experiments.compare import comparison_report as report
from ..experiments.compare.compared_models import build_models
from ..experiments.compare.comparison import compare
from ..experiments.compare.comparison_plan import Plan, shown
from ..experiments.compare.executors import Execution
from ..experiments.compare.results import ModelSummary
from ..experiments.compare.script_metric import EXAMPLE, ScriptMetric
from ..experiments.compare.script_plan import ScriptPlan
from ..frameworks.registrations import Registrations
from ..frameworks.run_processes import available_gpus
from ..frameworks.variants import variants
from . import exit_on_sigterm


def run(args: argparse.Namespace) -> int:
    """Train and test all runs of the comparison, then print its report.

    Return the exit status, 1 if no run has a result.
    """
    exit_on_sigterm()
    is_script = args.command is not None
    plan = script_plan_of(args) if is_script else plan_of(args)
    execution = Execution(args.executor, args.jobs, args.slurm)
    if not args.dry_run:
        execution.check(plan.num_gpus)
    models = {} if is_script else checked_models(plan)
    if args.dry_run:
        for seed in plan.seeds:
            for norm in plan.norms:
                print(plan.shown(norm, seed))
        return 0
    command = shown(["compare", *args.argv])
    results = compare(plan, models, command, execution)
    print(report.markdown(results, command))
    return 0 if results.main else 1


def checked_models(plan: Plan) -> dict[str, ModelSummary]:
    """Print the places and the norms of a config's models; UserError for mistakes in it."""
    plan.register()
    plan.variants.check_test()
    for opened in (plan.variants.opened, *map(plan.open, plan.overrides_of_norm)):
        variants(opened).check_training()
    print("keys that get the norm:")
    print(*(f"  {key}  {norm}" for key, norm in plan.places.items()), sep="\n")
    if plan.unconverted:
        print(report.warning_of_unconverted(plan.unconverted))
    models = build_models(plan)
    print("norms of the models:")
    print(*(f"  {norm}: {model.norms}" for norm, model in models.items()), sep="\n")
    plan.check_folders()
    plan.check_tests()
    plan.check_metric()
    return models


def script_plan_of(args: argparse.Namespace) -> ScriptPlan:
    """Return the plan that ``--command`` describes."""
    if args.metric is None:
        raise UserError(f"--command needs --metric NAME:FILE[:RULE], such as {EXAMPLE}")
    source, gpus = ScriptMetric.of(args.metric), gpus_of(args)
    if args.lower_is_better and source.rule == "max":
        raise UserError("--lower-is-better contradicts the rule max; give the rule min or last")
    higher = not args.lower_is_better and source.rule != "min"
    names = "command", "norms", "seeds", "output", "margin"
    given = {name: getattr(args, name) for name in names}
    return ScriptPlan(**given, source=source, num_gpus=gpus, higher_is_better=higher)


def gpus_of(args: argparse.Namespace) -> int:
    """Return the number of GPUs of a run; for 0, hide all of them."""
    if args.num_gpus is None and args.executor == "slurm":
        raise UserError("--executor slurm needs --num-gpus, the GPUs of each run, 0 for the CPU")
    gpus = min(1, available_gpus()) if args.num_gpus is None else args.num_gpus
    if gpus == 0:
        # Before a framework is imported: wherever one sees a GPU, it picks CUDA.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return gpus


def plan_of(args: argparse.Namespace) -> Plan:
    """Return the plan that options describe; UserError for options that contradict each other."""
    gpus = gpus_of(args)
    if len({name for name, _ in args.test}) < len(args.test):
        raise UserError("two --test have the same name; give each another name")
    overrides_of_norm = defaultdict(list)
    for norm, overrides in args.overrides_of_norm:
        try:
            overrides_of_norm[norm] += shlex.split(overrides)
        except ValueError as error:
            raise UserError(f"--for {norm} {overrides!r}: {error}; close each quote") from error
    names = "norms", "seeds", "output", "at", "weights", "metric", "margin", "overrides", "unsafe"
    return Plan(
        config=resolve(args.config),
        registrations=Registrations.of_options(args.imports, args.datasets),
        tests={name: resolve(config) for name, config in args.test},
        overrides_of_norm=dict(overrides_of_norm),
        num_gpus=gpus,
        higher_is_better=not args.lower_is_better,
        **{name: getattr(args, name) for name in names},
    )
