"""The report of a comparison: compare.md, compare.csv, and their tables."""

from collections.abc import Sequence
from datetime import timedelta
from statistics import fmean

import pandas as pd

from ..reports.interval import interval, p_value, spread
from ..reports.table import of_dicts
from .answers import answers, compared_by, headline, notes, warnings
from .results import OWN_TEST, ROUNDS, Results, Value

#: Seconds from which on a run's wall time is reported.
LONG = 60
#: What the columns of the tables are.
ABOUT = (
    "± is the standard deviation over seeds. Differences are paired by seed; brackets have their "
    "95 % interval. p is how probable a difference at least this large is between equal norms. "
    "Seeds do not change the images: a difference may not hold on others."
)
#: Columns of compare.csv.
COLUMNS = [field for field in Value._fields if field != "failure"] + ["failure"]


def markdown(results: Results, command: str) -> str:
    """Return the page compare.md."""
    lines = [f"# {title_of(results)}", "", headline(results), ""]
    lines += [f"{compared_by(results)} Written by `{command}`.", ""]
    for warning in warnings(results):
        lines += [warning, ""]
    for test in results.tests:
        lines += [f"## {results.title(test)}", "", *of_dicts(table(results, test), aligned=True)]
        lines += ["", *sentences(results, test), ""]
    lines += [ABOUT, "", *(f"- {text}" for text in notes(results)), ""]
    lines += ["## History of this folder", "", *of_dicts(history_table(results), aligned=True), ""]
    if costs := cost_table(results):
        lines += ["## Cost", "", *of_dicts(costs, aligned=True)]
        turns = f"A step is the median of {ROUNDS} in turn with the other norms' steps."
        lines += ["", *([turns, ""] if results.steps else ())]
    if results.failures:
        lines += ["## No result", ""]
        lines += [f"- {run_of(value)}: {value.failure}" for value in results.failures]
        lines.append("")
    return "\n".join(lines)


def title_of(results: Results) -> str:
    baseline, *others = results.norms
    return f"{', '.join(others)} in place of {baseline}" if others else baseline


def run_of(value: Value) -> str:
    """Return the name of a run, with its test if it is not the source's own."""
    test = "" if value.test == OWN_TEST else f", {value.test}"
    return f"{value.norm}, seed {value.seed}{test}"


def sentences(results: Results, test: str) -> list[str]:
    """Return what the seeds tell about each norm but the baseline, and what to do next."""
    found = answers(results, test).items()
    return [f"- {norm}: {one.word}. {one.text} Next: {one.next_step}" for norm, one in found]


def csv_of(results: Results) -> str:
    """Return the table compare.csv: a row for each run, test and metric."""
    values = pd.DataFrame(results.values, columns=Value._fields)
    return values.to_csv(columns=COLUMNS, index=False, lineterminator="\n")


def table(results: Results, test: str) -> list[dict[str, str]]:
    """Return a row for each norm: mean, deviation, difference from the baseline, p, verdict."""
    baseline, rows, digits = results.norms[0], [], results.unit.digits
    differences, verdicts = results.differences[test], results.verdicts[test]
    for norm in results.norms:
        row = {"norm": norm, "seeds": results.seeds_of(norm, test)}
        values = results.by_seed(norm, test).values()
        row[results.metric] = spread(values, digits) if values else "no result"
        difference = differences.get(norm)
        row[f"minus {baseline} [95 %]"] = interval(difference, digits) if difference else ""
        is_tested = difference is not None and difference.has_interval
        row["p"] = p_value(difference.p).removeprefix("= ") if is_tested else ""
        row["verdict"] = verdicts[norm].word if norm in verdicts else ""
        rows.append(row)
    return rows


def history_table(results: Results) -> list[dict[str, str]]:
    """Return rows of the folder's runs, those of all calls: results and failures.

    Runs of a norm that are alike but for their results share a row.
    """
    values = results.history.values or results.values
    left_out = {(value.norm, value.seed) for value in results.left_out}
    failures = _failures(results, values)
    groups: dict[tuple[str, str, str], list[int]] = {}
    for run in dict.fromkeys((value.norm, value.seed) for value in values):
        call = "left out" if run in left_out else ""
        groups.setdefault((run[0], call, failures.get(run, "")), []).append(run[1])
    main = [value for value in values if value.metric == results.metric]
    known = {value[:3]: value.value for value in main if value.value is not None}
    rows = []
    for (norm, call, reasons), seeds in groups.items():
        cells = {
            results.title(test): " ".join(
                f"{known[norm, seed, test]:.{results.unit.digits}f}"
                if (norm, seed, test) in known
                else "-"
                for seed in seeds
            )
            for test in dict.fromkeys(value.test for value in values)
        }
        named = {"norm": norm, "seeds": " ".join(map(str, seeds))}
        rows.append(named | cells | {"this call": call, "failures, earlier ones too": reasons})
    return filled(rows)


def _failures(results: Results, values: Sequence[Value]) -> dict[tuple[str, int], str]:
    """Return norm, seed -> the reasons of all failures of a run, now and before."""
    now = [(v.norm, v.seed, v.test, v.failure) for v in values if v.failure]
    reasons: dict[tuple[str, int], dict[str, None]] = {}
    for norm, seed, _, reason in (*results.history.failures, *now):
        reasons.setdefault((norm, seed), {})[reason.partition("; see ")[0]] = None
    return {run: "; ".join(of_run) for run, of_run in reasons.items()}


def filled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return a table without its empty columns."""
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    return [{name: row[name] for name in names} for row in rows]


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
