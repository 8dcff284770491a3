"""A comparison from its plan to its results: starts, runs, and the files of the report."""

from dataclasses import replace

from ...errors import writing_to
from ...files import lock, write_text
from ...frameworks.run_processes import available_gpus
from . import runs, starts
from .compared_models import measured_steps
from .comparison_page import page
from .comparison_plan import AnyPlan, Plan
from .comparison_plot import draw
from .comparison_report import csv_of, markdown
from .executors import Execution
from .results import ModelSummary, Results, complete, main_metric, point_of


def compare(
    plan: AnyPlan, models: dict[str, ModelSummary], command: str, execution: Execution
) -> Results:
    """Run the missing runs, and write compare.md, .csv, .png and .html; return the results.

    ``models`` is what :func:`.compared_models.build_models` returns, empty for scripts; compare.md
    shows ``command``.
    """
    state = None
    if plan.weights is not None:
        state = starts.read_weights(plan.weights)
        starts.check_fits(plan, state)
    with writing_to(plan.output), lock(plan.output):
        plan.check_settings()
        described = {}
        # A machine that submits jobs may have no GPU.
        here = plan if available_gpus() else replace(plan, num_gpus=0)
        if state is not None and here.num_gpus:
            described = starts.in_own_process(starts.write_starts, here, state)
        elif state is not None:
            described = starts.write_starts(here, state)
        # Before the first training: a step that fails ends the comparison now.
        steps = {}
        if isinstance(plan, Plan):
            steps = measured_steps(plan, is_trained=not runs.have_ended(plan))
        plan.prepare()
        runs.run_all(plan, execution)
        return report(plan, models, command, described, steps)


def report(
    plan: AnyPlan,
    models: dict[str, ModelSummary],
    command: str,
    described: dict[str, str],
    steps: dict[str, dict[str, float]],
) -> Results:
    """Write the files of the report on all runs; return the results."""
    values = runs.collect(plan)
    metric = main_metric(values, plan.metric, plan.best_metric())
    has_result = any(v.metric == metric and v.value is not None for v in values)
    results = Results(
        norms=plan.norms,
        values=complete(values, metric),
        metric=metric,
        point=plan.point(metric) or point_of(values, metric),
        margin=plan.margin,
        higher_is_better=plan.higher_is_better,
        starts=described,
        unconverted=plan.unconverted,
        models=models,
        steps=steps,
        overrides_of_norm=plan.overrides_of_norm,
    )
    write_text(plan.output / "compare.md", markdown(results, command))
    write_text(plan.output / "compare.csv", csv_of(results))
    if has_result:
        draw(results, plan.output / "compare.png")
    write_text(plan.output / "compare.html", page(plan, results, command))
    return results
