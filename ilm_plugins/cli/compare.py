"""The command ``compare``: train one config with several norms, and report their differences."""

import argparse
import json
import multiprocessing
import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checkpoints import replacing
from ..configs import resolve
from ..errors import OPERATORS, UserError, broken_import, one_line
from ..experiments.compare import comparison_report as report
from ..experiments.compare import runs
from ..experiments.compare.comparison_plot import draw
from ..experiments.compare.plan import Plan, shown
from ..experiments.compare.results import OWN_TEST, Results, Value, complete, main_metric, point_of
from ..experiments.data.detectron2_datasets import register_datasets
from ..frameworks import framework_of
from ..frameworks.folders import make_folder
from ..frameworks.lock import lock
from ..frameworks.parent import end_with_parent
from ..frameworks.processes import available_gpus
from ..frameworks.variants import AS_IS
from ..layers.registry import norm_key
from ..surgery.norms import count_norms
from . import exit_on_sigterm

if TYPE_CHECKING:
    from torch import nn


def run(args: argparse.Namespace) -> int:
    """Train and test all runs of the comparison, then write its report.

    Return the exit status, 1 if no run has a result.
    """
    exit_on_sigterm()
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
    plan = Plan(
        config=resolve(args.config),
        norms=args.norms,
        seeds=args.seeds,
        output=args.output,
        at=args.at,
        weights=args.weights,
        tests={name: resolve(config) for name, config in args.test},
        overrides_of_norm=dict(overrides_of_norm),
        metric=args.metric,
        num_gpus=gpus,
        overrides=args.overrides,
        unsafe=args.unsafe,
    )
    prepare(plan)
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
    make_folder(plan.output)
    state = None
    if plan.weights is not None:
        from ..experiments.compare.start import check_fits, read_weights

        state = read_weights(plan.weights)
        check_fits(plan, state)
    plan.check_settings()
    with lock(plan.output):
        has_result = compare(plan, models, state, shown(["compare", *args.argv]))
    return 0 if has_result else 1


class Model(NamedTuple):
    """The number of parameters and the norms of a model, for the report."""

    parameters: int
    #: The number of norms of each class.
    norms: str


def build_models(plan: Plan) -> dict[str, Model]:
    """Build the model of each norm; UserError names norms that cannot be built or have no place."""
    models, kinds, errors = {}, {}, []
    for norm in plan.norms:
        model, error = build_model(plan, norm)
        if model is None:
            # Before further norms: after an import that failed, they have errors of their own.
            if not errors:
                check_own_model(plan, error)
            errors.append(f"{norm}: {error}")
        else:
            count = sum(parameter.numel() for parameter in model.parameters())
            models[norm] = Model(count, count_norms(model))
            kinds[norm] = [type(module) for module in model.modules()]
            if twin := find_twin(norm, kinds):
                errors.append(f"{norm}: the same model as with {twin}")
    if errors:
        places = ", ".join(plan.places)
        raise UserError(
            f"these norms do not fit at {places}: {'; '.join(errors)}; leave them out, give them "
            "other options, or give another --at"
        )
    return models


def build_model(plan: Plan, norm: str) -> tuple["nn.Module | None", str]:
    """Return the model of a norm, or None and the error of one that cannot be built, in words."""
    try:
        return plan.open(norm, "cpu").build_model(), ""
    except ImportError as error:
        if error.name == OPERATORS:
            raise
        raise broken_import(plan.config, error) from error
    # A norm that does not fit, or is unknown to the framework; other errors have other causes.
    except (UserError, ValueError, TypeError, KeyError, AssertionError) as error:
        return None, f"{type(error).__name__}: {one_line(error)}"


def check_own_model(plan: Plan, error: str) -> None:
    """Raise UserError with a norm's error if the config's own norms cannot be built, either."""
    model, own_error = build_model(plan, AS_IS)
    if model is None:
        own = "" if own_error == error else f" (with its own norms: {own_error})"
        raise UserError(
            f"{plan.config}: the model cannot be built, whatever its norms: {error}{own}; correct "
            "the config or the overrides"
        )


def find_twin(norm: str, kinds: Mapping[str, list[type]]) -> str | None:
    """Return an earlier norm whose model is of the same classes, though one of both is ours."""
    for other in kinds:
        may_be_equal = AS_IS in (norm, other) or norm_key(norm) == norm_key(other)
        if not may_be_equal and kinds[other] == kinds[norm]:
            return other
    return None


def compare(
    plan: Plan, models: dict[str, Model], state: Mapping[str, Any] | None, command: str
) -> bool:
    """Run the missing runs, then write compare.md, compare.csv and compare.png, and print.

    Return whether any run has a result. ``state`` is the state dict of --weights.
    """
    starts = {}
    if state is not None:
        # A process that has used a GPU keeps some of its memory.
        write_starts = (
            partial(in_own_process, convert_weights) if plan.num_gpus else convert_weights
        )
        starts = write_starts(plan, state)
    runs.run_all(plan)
    values = collect(plan)
    metric = main_metric(values, plan.metric, plan.variants.main_metric())
    values = complete(values, metric)
    has_result = any(value.metric == metric and not value.failure for value in values)
    # Without a result, reading the training set may fail here, too.
    steps = measured_steps(plan) if has_result else {}
    results = Results(
        norms=plan.norms,
        values=values,
        metric=metric,
        point=plan.variants.opened.point(metric) or point_of(values, metric),
        starts=starts,
        unconverted=plan.unconverted,
        parameters={norm: model.parameters for norm, model in models.items()},
        norms_of_model={norm: model.norms for norm, model in models.items()},
        steps=steps,
        overrides_of_norm=plan.overrides_of_norm,
    )
    text = report.markdown(results, command)
    write(plan.output / "compare.md", text)
    write(plan.output / "compare.csv", results.frame.to_csv(index=False))
    if len(results.main):
        draw(results, plan.output / "compare.png")
    print(text)
    return has_result


def prepare(plan: Plan) -> None:
    if framework_of(plan.config) == "detectron2":
        register_datasets()


def convert_weights(plan: Plan, state: Mapping[str, Any]) -> dict[str, str]:
    """Write the checkpoint from which each norm starts; return how its outputs differ, in words."""
    from ..experiments.compare.start import write_starts

    prepare(plan)
    return write_starts(plan, state)


def in_own_process(function: Callable[..., Any], plan: Plan, *args: Any) -> Any:
    """Call a function in a new process."""
    fresh = replace(plan)  # without the open configs, which cannot be sent
    options = {"initializer": end_with_parent, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **options) as pool:
        return pool.submit(function, fresh, *args).result()


def collect(plan: Plan) -> list[Value]:
    """Return all metrics of all runs, and the failures."""
    values = []
    for norm in plan.norms:
        for seed in plan.seeds:
            for test in ("", *plan.tests):
                name = test or OWN_TEST
                if (reason := runs.failure(plan, norm, seed, test)) is not None:
                    values.append(Value(norm, seed, name, "", None, reason))
                metrics = runs.metrics(plan, norm, seed, test)
                values += [Value(norm, seed, name, k, v) for k, v in metrics.items()]
    return values


def measured_steps(plan: Plan) -> dict[str, dict[str, float]]:
    """Return the time of each norm's training step, measured again if the norms have changed.

    Empty if a step fails, as where the models of all norms together need more memory than there is.
    """
    path = plan.output / "steps.json"
    if path.is_file():
        steps = json.loads(path.read_text(encoding="utf-8"))
        if steps.keys() == {*plan.norms}:
            return steps
    from ..experiments.compare.speed import measure_steps

    try:
        steps = measure_steps(plan)
    except Exception as error:  # such as a loss of NaN, or too little memory; the report goes on
        print(f"the cost of a step was not measured: {type(error).__name__}: {error}")
        return {}
    write(path, json.dumps(steps, indent=1))
    return steps


def write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
