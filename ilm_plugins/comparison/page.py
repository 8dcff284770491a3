"""The page of a comparison, compare.html: one file that needs no network and no script."""

from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from ..reports.style import png, uri
from . import plot, report
from .answers import answers, compared_by, headline, notes, warnings
from .plan import Plan
from .plot import NARROW, WIDE, collapsed_runs, has_differences
from .results import OWN_TEST, ROUNDS, Results, Value
from .run_folders import environment, log_of

#: Number of the last lines of a failed run's output.
TAIL = 20


def page(plan: Plan, results: Results, command: str) -> str:
    """Return compare.html."""
    template = files(__package__).joinpath("page.html.jinja").read_text("utf-8")
    pages = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return pages.from_string(template).render(
        results=results,
        title=report.title_of(results),
        headline=headline(results),
        compared_by=compared_by(results),
        command=command,
        about=report.ABOUT,
        notes=notes(results),
        answers={test: answers(results, test) for test in results.tests},
        tables={test: report.filled(report.table(results, test)) for test in results.tests},
        has_differences=has_differences(results),
        collapsed=any(collapsed_runs(results, test) for test in results.tests),
        runs=_pictures(results) if results.main else None,
        history=report.history_table(results),
        costs=report.cost_table(results),
        rounds=ROUNDS,
        warnings=warnings(results),
        overrides=results.settings_of_norms,
        environment=_environment(plan),
        failures=[_failure(plan, value) for value in results.failures],
    )


def _pictures(results: Results) -> list[str]:
    """Return the picture of all runs, wide, and for phones."""
    return [uri(png(plot.figure_of(results, layout)), "png") for layout in (WIDE, NARROW)]


def _environment(plan: Plan) -> dict[str, str]:
    """Return versions, device and settings of the runs; all values where they differ."""
    found: dict[str, dict[str, None]] = {}
    for folder in plan.folders:
        for name, value in environment(folder).items():
            found.setdefault(name, {})[value] = None
    return {name: ", ".join(values) for name, values in found.items()}


def _failure(plan: Plan, value: Value) -> dict[str, str | None]:
    """Return a run without a result, why, and the last lines of its output."""
    log = log_of(plan.folder(value.norm, value.seed, "" if value.test == OWN_TEST else value.test))
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.is_file() else []
    tail = "\n".join(lines[-TAIL:])
    return {"run": report.run_of(value), "reason": value.failure, "log": str(log), "tail": tail}
