"""The command ``compare``: train a config or a script with several norms; report differences."""

import argparse
import os
import shlex
from functools import partial

from ..comparison.arms import Arm, Arms
from ..comparison.command_source import CommandSource
from ..comparison.comparison import compare_plan
from ..comparison.config_source import ConfigSource
from ..comparison.plan import Plan, shown
from ..comparison.run.executors import Execution, run_all
from ..comparison.script_metric import EXAMPLE, ScriptMetric
from ..configs import resolve
from ..errors import UserError, say
from ..frameworks.registrations import Registrations
from ..frameworks.run.processes import available_gpus


def run(args: argparse.Namespace) -> int:
    """Train and test all runs of the comparison, then print its report.

    Return the exit status, 1 if no run has a result.
    """
    plan = plan_of(args)
    execution = Execution(args.executor, args.jobs, args.slurm)
    execution.check(plan.source.num_gpus, args.dry_run)
    if args.dry_run:
        plan.source.check_models(plan)
        plan.source.measure_steps(plan, is_dry=True)
        for seed in plan.seeds:
            for norm in plan.norms:
                say(plan.source.shown(norm, seed, plan.folder(norm, seed)))
        return 0
    command = shown(["compare", *args.argv])
    results = compare_plan(plan, command, partial(run_all, execution=execution))
    say((plan.output / "compare.md").read_text("utf-8"))
    return 0 if results.main else 1


def plan_of(args: argparse.Namespace) -> Plan:
    """Return the plan that options describe; UserError for options that contradict each other."""
    source = config_of(args) if args.command is None else command_of(args)
    metric = args.metric if args.command is None else None  # of a script, the source's
    higher = not args.lower_is_better
    norms = [*args.norms, *(name for name in source.arms if name not in args.norms)]
    return Plan(source, norms, args.seeds, args.output, metric, args.margin, higher, args.unit)


def command_of(args: argparse.Namespace) -> CommandSource:
    """Return the script that ``--command`` and ``--metric`` describe."""
    if args.metric is None:
        raise UserError(f"--command needs --metric NAME:FILE[:RULE], such as {EXAMPLE}")
    metric = ScriptMetric.of(args.metric)
    if args.lower_is_better and metric.rule == "max":
        raise UserError("--lower-is-better contradicts the rule max; give the rule min or last")
    return CommandSource(args.command, metric, gpus_of(args), arms_of(args))


def config_of(args: argparse.Namespace) -> ConfigSource:
    """Return the config with its options."""
    if len({name for name, _ in args.test}) < len(args.test):
        raise UserError("two --test have the same name; give each another name")
    return ConfigSource(
        config=resolve(args.config),
        at=args.at,
        overrides=args.overrides,
        arms=arms_of(args),
        num_gpus=gpus_of(args),
        registrations=Registrations.of_options(args.imports, args.datasets),
        unsafe=args.unsafe,
        weights=args.weights,
        tests={name: resolve(config) for name, config in args.test},
    )


def arms_of(args: argparse.Namespace) -> Arms:
    """Return the arms; those whose names are not among the norms are compared after these."""
    arms = Arms()
    for name, norm, overrides in args.arms:
        if name in arms:
            raise UserError(f"two --arm have the name {name!r}; give each another name")
        try:
            arms[name] = Arm(norm, shlex.split(overrides))
        except ValueError as error:
            raise UserError(f"--arm {name} {overrides!r}: {error}; close each quote") from error
    return arms


def gpus_of(args: argparse.Namespace) -> int:
    """Return the number of GPUs of a run; for 0, hide all of them."""
    if args.num_gpus is None and args.executor == "slurm":
        raise UserError("--executor slurm needs --num-gpus, the GPUs of each run, 0 for the CPU")
    gpus = min(1, available_gpus()) if args.num_gpus is None else args.num_gpus
    if gpus == 0:
        # Before a framework is imported: wherever one sees a GPU, it picks CUDA.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return gpus
