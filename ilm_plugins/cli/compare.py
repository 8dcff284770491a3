"""The command ``compare``: train one config with several norms, and report their differences."""

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
from ..frameworks.run_processes import available_gpus
from . import exit_on_sigterm


def run(args: argparse.Namespace) -> int:
    """Train and test all runs of the comparison, then print its report.

    Return the exit status, 1 if no run has a result.
    """
    exit_on_sigterm()
    plan = plan_of(args)
    execution = Execution(args.executor, args.jobs, args.slurm)
    if not args.dry_run:
        execution.check(plan.num_gpus)
    plan.register_datasets()
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
    if args.dry_run:
        for seed in plan.seeds:
            for norm in plan.norms:
                print(shown(plan.training(norm, seed)))
        return 0
    command = shown(["compare", *args.argv])
    results = compare(plan, models, command, execution)
    print(report.markdown(results, command))
    return 0 if results.main else 1


def plan_of(args: argparse.Namespace) -> Plan:
    """Return the plan that options describe; UserError for options that contradict each other."""
    if args.num_gpus is None and args.executor == "slurm":
        raise UserError("--executor slurm needs --num-gpus, the GPUs of each run, 0 for the CPU")
    gpus = min(1, available_gpus()) if args.num_gpus is None else args.num_gpus
    if gpus == 0:
        # Before a framework is imported: wherever one sees a GPU, it picks CUDA.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if len({name for name, _ in args.test}) < len(args.test):
        raise UserError("two --test have the same name; give each another name")
    overrides_of_norm = defaultdict(list)
    for norm, overrides in args.overrides_of_norm:
        try:
            overrides_of_norm[norm] += shlex.split(overrides)
        except ValueError as error:
            raise UserError(f"--for {norm} {overrides!r}: {error}; close each quote") from error
    names = "norms", "seeds", "output", "at", "weights", "metric", "overrides", "unsafe"
    return Plan(
        config=resolve(args.config),
        tests={name: resolve(config) for name, config in args.test},
        overrides_of_norm=dict(overrides_of_norm),
        num_gpus=gpus,
        **{name: getattr(args, name) for name in names},
    )
