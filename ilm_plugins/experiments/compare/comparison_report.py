"""The report of a comparison: compare.md, compare.csv, and a sentence on each norm."""

import csv
import io

from ..reports.interval import ALPHA, Difference, interval, signed, spread
from ..reports.table import of_dicts
from .results import OWN_TEST, ROUNDS, Results, Value


def markdown(results: Results, command: str) -> str:
    """Return the page compare.md."""
    baseline = results.norms[0]
    lines = [
        f"# {', '.join(results.norms[1:]) or 'No norm'} in place of {baseline}",
        "",
        f"Written by `{command}`.",
        "",
    ]
    for test in results.tests:
        lines += [f"## {results.title(test)}", "", *of_dicts(table(results, test), aligned=True)]
        lines += ["", *(f"- {text}" for text in sentences(results, test)), ""]
    if costs := cost_table(results):
        lines += ["## Cost", "", *of_dicts(costs, aligned=True)]
        turns = f"A step is the median of {ROUNDS} in turn with the other norms' steps."
        lines += ["", *([turns, ""] if results.steps else ())]
    if results.overrides_of_norm:
        lines += ["## Settings of one norm", ""]
        for norm, overrides in results.overrides_of_norm.items():
            lines.append(f"- {norm}: `{' '.join(overrides)}`")
        lines.append("")
    if results.starts:
        lines += ["## At the start", ""]
        lines += [f"- {norm}: {text}" for norm, text in results.starts.items()]
        how = "Before training, on one batch; each norm has the inputs of the baseline's norm."
        lines += ["", how, ""]
    if results.unconverted:
        lines += ["## At the start", "", warning_of_unconverted(results.unconverted), ""]
    if results.failures:
        lines += ["## Without a result", ""]
        for value in results.failures:
            test = "" if value.test == OWN_TEST else f", {value.test}"
            lines.append(f"- {value.norm}, seed {value.seed}{test}: {value.failure}")
        lines.append("")
    corrected = ""
    if len(results.norms) > 2:
        corrected = ", by Holm's correction for the norms with a p, which the intervals do not have"
    lines += [
        "Differences are paired by seed; behind them is the 95 % interval of Student's t. p is "
        f"that of the paired t-test{corrected}. A number of seeds shows a difference if p is below "
        f"{ALPHA} in four of five comparisons.",
        "",
    ]
    return "\n".join(lines)


def csv_of(results: Results) -> str:
    """Return the table compare.csv: a row for each run, test and metric."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Value._fields, *results.values])
    return text.getvalue()


def warning_of_unconverted(file: str) -> str:
    """Return what it means that a config loads a file of weights, which no norm converts."""
    return (
        f"The config loads {file!r}. If the file has weights of the compared norms, the plain norm "
        "starts trained. Norms that cannot load its tensors, such as EN, start untrained, which "
        "favours the plain norm; then give a local copy of the file as --weights, which is "
        "converted to each norm."
    )


def table(results: Results, test: str) -> list[dict[str, str]]:
    """Return a row for each norm: mean, deviation, difference from the baseline, p."""
    baseline, rows, digits = results.norms[0], [], decimals(results)
    differences = results.differences(test)
    for norm in results.norms:
        row = {"norm": norm, "seeds": results.seeds_of(norm, test)}
        values = results.by_seed(norm, test).values()
        row[results.metric] = spread(values, digits) if values else "no result"
        difference = differences.get(norm)
        row[f"minus {baseline} [95 %]"] = interval(difference, digits) if difference else ""
        row["p"] = f"{difference.p:.3f}" if difference and difference.is_tested else ""
        if difference and (failed := failed_runs(results, norm, test)):
            row["p"] = f"no test: {failed} failed"
        rows.append(row)
    return rows


def decimals(results: Results) -> int:
    """Return how many decimals a tenth of a point has."""
    return 3 if results.point < 1 else 1


def sentences(results: Results, test: str) -> list[str]:
    """Return a sentence for each norm but the baseline: the difference that its seeds show."""
    digits = decimals(results)
    texts = []
    for norm, difference in results.differences(test).items():
        if difference is None:
            texts.append(f"{norm}: no seed has a result of both norms.")
        elif failed := failed_runs(results, norm, test):
            left = f"the other seeds differ by {interval(difference, digits)}"
            texts.append(f"{norm}: neither better nor worse, as {failed} failed; {left}.")
        elif difference.seeds == 1:
            texts.append(f"{norm}: one seed shows nothing; give more --seeds.")
        elif results.are_equal(norm, test):
            equal = f"all {difference.seeds} seeds have the result of {results.norms[0]}"
            texts.append(f"{norm}: {equal}, so the norm probably had no effect; there is no test.")
        elif not difference.has_interval:
            same = f"all seeds have the same difference, {signed(difference.mean, digits)}"
            texts.append(f"{norm}: {same}, so its spread is unknown; give more --seeds.")
        else:
            texts.append(f"{norm}: {_verdict(difference, results, digits)}")
    return texts


def failed_runs(results: Results, norm: str, test: str) -> str:
    """Return the failed runs of a norm and of the baseline, such as "AN seed 3 (diverged)"."""
    return ", ".join(
        f"{one} seed {seed} ({reason.partition(':')[0]})"
        for one in (results.norms[0], norm)
        for seed, reason in results.failed_seeds(one, test).items()
    )


def _verdict(difference: Difference, results: Results, digits: int) -> str:
    baseline, point = results.norms[0], results.point
    if difference.p < ALPHA:
        side = "above" if difference.mean > 0 else "below"
        seen = f"{abs(difference.mean):.{digits}f} {side} {baseline} (p = {difference.p:.3f})."
    else:
        seen = (
            f"no difference was seen; {difference.seeds} seeds would show differences above "
            f"{difference.visible:.{digits}f}."
        )
    seeds = difference.seeds_for(point)
    return f"{seen} A difference of {point:g} needs {seeds or 'over 10,000'} seeds."


def cost_table(results: Results) -> list[dict[str, str]]:
    """Return a row for each norm: parameters, time of a step over the baseline's, memory."""
    rows = []
    for norm, model in results.models.items():
        row = {"norm": norm, "norms of the model": model.norms}
        row["parameters"] = f"{model.parameters:,}"
        if norm in results.steps and results.norms[0] in results.steps:
            seconds = results.steps[norm]["seconds"]
            ratio = seconds / results.steps[results.norms[0]]["seconds"]
            row["step"] = f"{seconds:.3f} s"
            row[f"by {results.norms[0]}'s"] = f"{ratio:.2f}"
            if "memory" in results.steps[norm]:
                row["peak memory of a step"] = f"{results.steps[norm]['memory'] / 2**20:,.0f} MiB"
        rows.append(row)
    return rows
