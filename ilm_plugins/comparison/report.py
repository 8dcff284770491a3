"""The report of a comparison: compare.md, compare.csv, and their tables."""

from collections.abc import Sequence

import pandas as pd

from ..reports.interval import interval, p_value, spread
from ..reports.table import of_dicts
from .answers import answers, compared_by, headline, notes, warnings
from .results import OWN_TEST, Results, Value

#: What the columns of the tables are.
ABOUT = (
    "± is the standard deviation over seeds. Differences are paired by seed; brackets have their "
    "95 % interval. p, corrected, is how probable a difference at least this large is between "
    "equal norms. Seeds do not change the images: a difference may not hold on other images."
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
        lines += ["", *(f"- {sentence}" for sentence in sentences(results, test)), ""]
    lines += [ABOUT, "", *(f"- {text}" for text in notes(results)), ""]
    lines += ["## History of this folder", "", *of_dicts(history_table(results), aligned=True), ""]
    if results.failures:
        lines += ["## No result", ""]
        lines += [f"- {failure}" for failure in failures(results)]
        lines.append("")
    return "\n".join(lines)


def title_of(results: Results) -> str:
    baseline, *others = results.norms
    return f"{', '.join(others)} in place of {baseline}" if others else baseline


def failures(results: Results) -> list[str]:
    """Return the runs without a result, and why; a test's name if it is not the source's own."""
    return [
        f"{v.norm}, seed {v.seed}{'' if v.test == OWN_TEST else f', {v.test}'}: {v.failure}"
        for v in results.failures
    ]


def sentences(results: Results, test: str) -> list[str]:
    """Return what the seeds tell about each norm but the baseline, and what to do next."""
    answer_of = answers(results, test).items()
    return [
        f"{norm}: {answer.word}. {answer.text} Next: {answer.next_step}"
        for norm, answer in answer_of
    ]


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
    """Return rows of results and failures, for the runs of all calls in the folder.

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
