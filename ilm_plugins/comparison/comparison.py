"""A comparison from its plan to its results: the runs, and the files of the report."""

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from ..errors import writing_to
from ..files import lock, write_text
from ..reports import style
from . import history
from .page import page
from .plan import Plan
from .plot import figure_of
from .report import csv_of, markdown
from .results import Results, complete, main_metric
from .run.executors import run_all
from .run.outcomes import collect, confounded


def compare_plan(plan: Plan, command: str, make_runs: Callable[[Plan], None] = run_all) -> Results:
    """Make the missing runs, and write compare.md, .csv, .png and .html; return the results.

    The report shows ``command``.
    """
    plan.source.check_models(plan)
    with writing_to(plan.output), lock(plan.output):
        plan.save_settings()
        history.note(plan)
        fields = plan.source.prepare(plan)
        if other := plan.other_code():
            tqdm.write(other)
        make_runs(plan)
        return report(plan, command, **fields)


def report(plan: Plan, command: str, **fields: Any) -> Results:
    """Write the files of the report on all runs; return the results, with further fields."""
    values = collect(plan)
    best, is_low = plan.source.best_metric()
    metric = main_metric(values, plan.metric, best)
    is_best = best is not None and metric.rpartition("/")[2] == best.rpartition("/")[2]
    results = Results(
        norms=plan.norms,
        values=complete(values, metric),
        metric=metric,
        unit_name=plan.unit or plan.source.unit(metric),
        margin=plan.margin,
        confounded=[*filter(None, [plan.other_code()]), *confounded(plan)],
        higher_is_better=plan.higher_is_better and not (is_low and is_best),
        history=history.of_folder(plan, metric),
        **fields,
    )
    history.note(plan, results)
    write_text(plan.output / "compare.md", markdown(results, command))
    write_text(plan.output / "compare.csv", csv_of(results))
    if results.main:
        style.save(figure_of(results), plan.output / "compare.png")
    write_text(plan.output / "compare.html", page(results, command))
    return results
