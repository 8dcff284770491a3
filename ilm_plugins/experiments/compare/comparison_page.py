"""The page of a comparison, compare.html: one file that needs no network and no script."""

import platform
import shlex
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from ...frameworks.run_record import read
from ..reports.style import png, uri
from . import comparison_plot, curves
from .comparison_plan import Plan
from .comparison_plot import NARROW, WIDE, has_differences
from .comparison_report import cost_table, label, nothing_told, sentences, table, warnings
from .predictions import SCORE
from .results import OWN_TEST, ROUNDS, Results, Value
from .tasks import log_of

#: Number of the last lines of a failed run's output.
TAIL = 20
#: Setting in a run's record -> its name in the page.
SETTINGS = {
    "device": "device",
    "processes": "processes",
    "commit": "commit",
    "code": "code of the function",
    "amp": "mixed precision",
    "batch": "images of a step",
    "images": "training images",
    "planned": "planned length",
    "unit": "unit of the length",
}


class Failure(NamedTuple):
    """A run without a result, and the last lines of its output."""

    value: Value
    log: Path
    tail: str


def page(plan: Plan, results: Results, command: str) -> str:
    """Return compare.html."""
    found = curves.curves(plan, results)
    template = files(__package__).joinpath("comparison_page.html.jinja").read_text("utf-8")
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["quoted"] = shlex.quote
    return environment.from_string(template).render(
        results=results,
        command=command,
        tests=[_of_test(results, test) for test in results.tests],
        has_differences=has_differences(results),
        runs=_pictures(comparison_plot.figure_of, results) if results.main else None,
        curves=_pictures(curves.figure_of, found, results.norms) if found else None,
        quantities=[*found],
        predictions=plan.source.predictions(_first_runs(plan, results), plan.output),
        score=SCORE,
        costs=cost_table(results),
        rounds=ROUNDS,
        warnings=warnings(results),
        overrides=results.settings_of_norms,
        environment=_environment(plan),
        failures=[_failure(plan, value) for value in results.failures],
        output=plan.output,
        tensorboard=_folders(plan, "events.out.tfevents.*"),
        wandb=_folders(plan, "wandb/*run-*"),
        own_test=OWN_TEST,
    )


def _of_test(results: Results, test: str) -> dict[str, Any]:
    """Return the title, the verdicts and the table of a test."""
    verdicts = [
        (
            norm,
            verdict.word,
            label(verdict),
            text.removeprefix(f"{norm}: "),
            next_step(results, norm) if test == results.tests[0] else "",
        )
        for (norm, verdict), text in zip(
            results.verdicts[test].items(), sentences(results, test), strict=True
        )
    ]
    # Each verdict stands above the table.
    rows = [{k: v for k, v in row.items() if k != "verdict"} for row in table(results, test)]
    return {"title": results.title(test), "verdicts": verdicts, "rows": rows}


def next_step(results: Results, norm: str) -> str:
    """Return what a reader may do now about a norm, by the first test."""
    text = _next_step(results, norm)
    words = {test: results.verdicts[test][norm].word for test in results.tests}
    first = words.pop(results.tests[0])
    others = [f"{word} by {test}" for test, word in words.items() if word != first]
    return f"{text} But it is {', '.join(others)}." if others else text


def _next_step(results: Results, norm: str) -> str:
    test, baseline = results.tests[0], results.norms[0]
    difference, verdict = results.differences[test][norm], results.verdicts[test][norm]
    failed = [*results.failed_seeds(baseline, test).values()]
    failed += results.failed_seeds(norm, test).values()
    if any(reason.startswith("diverged") for reason in failed):
        return "compare again with a lower learning rate, as runs diverged."
    if failed:
        return 'correct the cause below, in "No result", and give the same command again.'
    if difference is None or not difference.is_tested:
        if difference and difference.seeds > 1 and results.are_equal(norm, test):
            return f"check that the training uses {norm}: all results are {baseline}'s."
        return "compare with at least five seeds."
    if nothing_told(results, norm, test):
        return "compare with at least five seeds of whole trainings."
    if len(results.readings) > 1:
        return f"test {norm} by fresh seeds alone, as the warning above says."
    if "within the margin" in label(verdict):
        return "use either norm: they differ by less than the margin."
    cost = ", if its cost suits you"
    if {baseline, norm} <= results.steps.keys():
        ratio = results.steps[norm]["seconds"] / results.steps[baseline]["seconds"]
        cost = f"; its training step takes {ratio:.2f} of {baseline}'s time"
    answers = {
        "better": f"use {norm} in place of {baseline}{cost}.",
        "no worse": f"{norm} may replace {baseline}{cost}.",
        "equivalent": "use either norm, such as the faster one.",
        "worse": f"keep {baseline}, or compare again with a learning rate of {norm}'s own.",
    }
    if verdict.word in answers:
        return answers[verdict.word]
    needed, size = verdict.seeds_needed, f"{results.visible_points * results.point:g}"
    if needed is None:
        return f"keep {baseline}; no practicable number of seeds shows a difference of {size}."
    if needed <= difference.seeds:
        return f"keep {baseline}; a difference of {size} would probably have shown."
    return (
        f"keep {baseline}, or, if a difference of {size} matters to you, plan a new comparison of "
        f"at least {needed} fresh seeds."
    )


def _pictures(figure_of: Callable[..., Figure], *arguments: Any) -> list[str]:
    """Return a figure as a wide picture and as one for phones."""
    return [uri(png(figure_of(*arguments, layout)), "png") for layout in (WIDE, NARROW)]


def _first_runs(plan: Plan, results: Results) -> dict[str, Path]:
    """Return norm -> folder of its first seed with a result, for norms that have one."""
    seeds = {norm: results.by_seed(norm, OWN_TEST) for norm in plan.norms}
    return {norm: plan.folder(norm, min(found)) for norm, found in seeds.items() if found}


def _environment(plan: Plan) -> dict[str, str]:
    """Return versions, device and settings; of values that differ, the number of runs of each."""
    found: dict[str, Counter[str]] = {"Python": Counter([platform.python_version()])}
    for folder in plan.folders:
        record = read(folder) or {}
        settings = {name: record.get(key) for key, name in SETTINGS.items()}
        for name, value in (record.get("versions", {}) | settings).items():
            if value is not None:
                found.setdefault(name, Counter())[str(value)] += 1
    return {name: _counted(values) for name, values in found.items()}


def _counted(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return ", ".join(f"{value} ({count} run{'s' * (count > 1)})" for value, count in values.items())


def _failure(plan: Plan, value: Value) -> Failure:
    test = "" if value.test == OWN_TEST else value.test
    log = log_of(plan.folder(value.norm, value.seed, test))
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.is_file() else []
    return Failure(value, log, "\n".join(lines[-TAIL:]))


def _folders(plan: Plan, pattern: str) -> list[str]:
    """Return the folders of the comparison with files that a pattern names."""
    return sorted({str(path.parent) for path in plan.output.rglob(pattern)})
