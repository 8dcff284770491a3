"""The report of a comparison: compare.md, compare.csv, and a sentence on each norm."""

import csv
import io

from ..reports.interval import ALPHA, POWER, Difference, ends, interval, signed, spread
from ..reports.table import of_dicts
from .results import OWN_TEST, ROUNDS, Results, Verdict

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
        f"that of the paired t-test{corrected}. Seeds show a difference if p is below {ALPHA}. "
        "What is not excluded is the 90 % interval: each of its ends is a one-sided test at 5 %.",
        "",
    ]
    return "\n".join(lines)


def csv_of(results: Results) -> str:
    """Return the table compare.csv: a row for each run, test and metric."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(value._asdict() for value in results.values)
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
    """Return a row for each norm: mean, deviation, difference from the baseline, p, verdict."""
    baseline, rows, digits = results.norms[0], [], decimals(results)
    differences, verdicts = results.differences[test], results.verdicts[test]
    for norm in results.norms:
        row = {"norm": norm, "seeds": results.seeds_of(norm, test)}
        values = results.by_seed(norm, test).values()
        row[results.metric] = spread(values, digits) if values else "no result"
        difference = differences.get(norm)
        row[f"minus {baseline} [95 %]"] = interval(difference, digits) if difference else ""
        is_tested = difference is not None and difference.is_tested
        row["p"] = f"{difference.p:.3f}" if is_tested else ""
        row["not excluded"] = ends(*difference.left, digits) if is_tested else ""
        row["verdict"] = verdicts[norm].word if norm in verdicts else ""
        rows.append(row)
    return rows


def decimals(results: Results) -> int:
    """Return how many decimals a tenth of a point has."""
    return 3 if results.point < 1 else 1


def sentences(results: Results, test: str) -> list[str]:
    """Return a text for each norm but the baseline: better, worse or what else its seeds tell."""
    digits, texts = decimals(results), []
    verdicts = results.verdicts[test]
    for norm, difference in results.differences[test].items():
        if difference is None:
            texts.append(f"{norm}: no seed has a result of both norms.")
        elif failed := failed_runs(results, norm, test):
            left = f"The other seeds differ by {interval(difference, digits)}"
            texts.append(f"{norm}: undecided, as {failed}. {left}.")
        elif difference.seeds == 1:
            texts.append(f"{norm}: one seed shows nothing; give more --seeds.")
        elif results.are_equal(norm, test):
            equal = f"all {difference.seeds} seeds have the result of {results.norms[0]}"
            texts.append(f"{norm}: {equal}, so the norm probably had no effect; there is no test.")
        elif not difference.has_interval:
            same = f"all seeds have the same difference, {signed(difference.mean, digits)}"
            texts.append(f"{norm}: {same}, so its spread is unknown; give more --seeds.")
        else:
            parts = (
                _answer(difference, verdicts[norm], results),
                _excluded(difference, results),
                _power(difference, verdicts[norm], results),
            )
            texts.append(f"{norm}: {' '.join(parts)}")
    return texts


def failed_runs(results: Results, norm: str, test: str) -> str:
    """Return how many runs of the baseline and of a norm learned, if some failed, and reasons."""
    texts = []
    for one in (results.norms[0], norm):
        failed = results.failed_seeds(one, test).items()
        reasons = "; ".join(f"seed {seed}: {text.partition(':')[0]}" for seed, text in failed)
        if failed:
            texts.append(f"{results.seeds_of(one, test)} with {one} ({reasons})")
    return ", ".join(texts)


def _answer(difference: Difference, verdict: Verdict, results: Results) -> str:
    """Return the verdict with its p, and whether the norms are equivalent within the margin."""
    baseline, word = results.norms[0], verdict.word
    by = f"by {abs(difference.mean):.{decimals(results)}f} (p = {difference.p:.3f})"
    text = {
        "undecided": f"undecided (p = {difference.p:.3f})",
        "equivalent": f"equivalent to {baseline}",
        "no worse": f"no worse than {baseline}",
    }.get(word, f"{word} than {baseline} {by}")
    if results.margin is not None:
        within = f" within {_size(results, results.margin)}"
        if word == "no worse":
            text, within = f"{text}{within} (p = {verdict.p_no_worse:.3f})", ""
        if word != "equivalent":
            shown = "" if verdict.p_equivalent < ALPHA else "not shown to be "
            text += f", {shown}equivalent"
        text += f"{within} (p = {verdict.p_equivalent:.3f})"
    return f"{text}."


def _excluded(difference: Difference, results: Results) -> str:
    """Return which losses and gains two one-sided tests at 5 % exclude."""
    digits = decimals(results)
    low, high = difference.left
    loss, gain = (-low, high) if results.higher_is_better else (high, -low)
    most = [(name, f"{abs(end):.{digits}f}") for name, end in (("loss", loss), ("gain", gain))]
    if loss < 0 or gain < 0:
        (name, largest), (_, least) = most if gain < 0 else most[::-1]
        return f"A {name} of less than {least} or more than {largest} is excluded (5 % each)."
    (_, loss), (_, gain) = most
    most_of = f"A loss of more than {loss} and a gain of more than {gain}"
    return f"{most_of} are excluded (5 % each)."


def _power(difference: Difference, verdict: Verdict, results: Results) -> str:
    """Return how probably the seeds show a difference of the margin, and how many seeds do."""
    text = (
        f"{difference.seeds} seeds show a difference of {_size(results, results.visible_points)} "
        f"with probability {verdict.power:.2f}"
    )
    needed = verdict.seeds_needed
    if needed is None or needed > difference.seeds:
        text += f", {needed or 'over 10,000'} seeds with {POWER:.2f}"
    return f"{text}."


def _size(results: Results, points: float) -> str:
    """Format a number of points, or their value where a point is not 1."""
    if results.point != 1:
        return f"{points * results.point:g}"
    return "1 point" if points == 1 else f"{points:g} points"


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
