"""The report of a comparison: compare.md, compare.csv, and their tables."""

import csv
import io
from datetime import timedelta
from statistics import fmean

from ..reports.interval import ALPHA, ends, interval, p_value, spread
from ..reports.table import of_dicts
from .answers import answers, decimals, warnings
from .results import OWN_TEST, ROUNDS, Results

#: Seconds from which on a run's wall time is reported.
LONG = 60
#: Columns of compare.csv.
COLUMNS = (
    *("norm", "seed", "test", "metric", "value", "seconds", "commit", "processor"),
    "failure",
)


def markdown(results: Results, command: str) -> str:
    """Return the page compare.md."""
    baseline = results.norms[0]
    lines = [
        f"# {', '.join(results.norms[1:]) or 'No norm'} in place of {baseline}",
        "",
        f"Written by `{command}`.",
        "",
    ]
    for warning in warnings(results):
        lines += [warning, ""]
    for test in results.tests:
        lines += [f"## {results.title(test)}", "", *of_dicts(table(results, test), aligned=True)]
        lines += ["", *(f"- {sentence}" for sentence in sentences(results, test)), ""]
    if costs := cost_table(results):
        lines += ["## Cost", "", *of_dicts(costs, aligned=True)]
        turns = f"A step is the median of {ROUNDS} in turn with the other norms' steps."
        lines += ["", *([turns, ""] if results.steps else ())]
    if results.starts:
        lines += ["## At the start", ""]
        lines += [f"- {norm}: {text}" for norm, text in results.starts.items()]
        how = "Before training, on one batch; each norm has the inputs of the baseline's norm."
        lines += ["", how, ""]
    if results.failures:
        lines += ["## No result", ""]
        for value in results.failures:
            test = "" if value.test == OWN_TEST else f", {value.test}"
            lines.append(f"- {value.norm}, seed {value.seed}{test}: {value.failure}")
        lines.append("")
    corrected = ""
    if len(results.norms) > 2:
        corrected = ", by Holm's correction for the norms with a p, which the intervals do not have"
    lines += [
        "Differences are paired by seed; behind them is the 95 % interval of Student's t. p is "
        f"that of the paired t-test{corrected}. Seeds show a difference if p is below {ALPHA}. "
        "What is not excluded is the 90 % interval: each of its ends is a one-sided test at 5 %.",
        "",
    ]
    return "\n".join(lines)


def sentences(results: Results, test: str) -> list[str]:
    """Return what the seeds tell about each norm but the baseline."""
    return [f"{norm}: {answer.text}" for norm, answer in answers(results, test).items()]


def csv_of(results: Results) -> str:
    """Return the table compare.csv: a row for each run, test and metric."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(value._asdict() for value in results.values)
    return text.getvalue()


def table(results: Results, test: str) -> list[dict[str, str]]:
    """Return a row for each norm: mean, deviation, difference from the baseline, p, verdict."""
    baseline, rows, digits = results.norms[0], [], decimals(results)
    differences, found = results.differences[test], answers(results, test)
    for norm in results.norms:
        row = {"norm": norm, "seeds": results.seeds_of(norm, test)}
        values = results.by_seed(norm, test).values()
        row[results.metric] = spread(values, digits) if values else "no result"
        difference = differences.get(norm)
        row[f"minus {baseline} [95 %]"] = interval(difference, digits) if difference else ""
        is_tested = difference is not None and difference.is_tested
        row["p"] = p_value(difference.p).removeprefix("= ") if is_tested else ""
        is_told = norm in found and found[norm].is_told
        row["not excluded"] = ends(*difference.left, digits) if is_told else ""
        row["verdict"] = found[norm].label if norm in found else ""
        rows.append(row)
    return rows


def cost_table(results: Results) -> list[dict[str, str]]:
    """Return a row for each norm: parameters, a step's time and memory, a training's wall time."""
    rows = []
    for norm in results.norms:
        row = {}
        if model := results.models.get(norm):
            row = {"norms of the model": model.norms, "parameters": f"{model.parameters:,}"}
        if norm in results.steps and results.norms[0] in results.steps:
            seconds = results.steps[norm]["seconds"]
            ratio = seconds / results.steps[results.norms[0]]["seconds"]
            row["step"] = f"{seconds:.3f} s"
            row[f"times {results.norms[0]}'s"] = f"{ratio:.2f}"
            if "memory" in results.steps[norm]:
                row["peak memory of a step"] = f"{results.steps[norm]['memory'] / 2**20:,.0f} MiB"
        runs = {v.seed: v.seconds for v in results.values if v.norm == norm and not v.failure}
        seconds = fmean([one for one in runs.values() if one] or [0.0])
        if seconds >= LONG:
            row["wall time of a run"] = str(timedelta(seconds=round(seconds)))
        rows.append({"norm": norm, **row})
    return rows if any(len(row) > 1 for row in rows) else []
