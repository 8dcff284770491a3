"""The report of a comparison: compare.md, compare.csv, and a sentence on each norm."""

import csv
import io
from collections.abc import Sequence
from datetime import timedelta
from statistics import fmean

from ..reports.interval import (
    ALPHA,
    POWER,
    Difference,
    ends,
    failure_rate,
    false_positives,
    interval,
    p_value,
    signed,
    spread,
)
from ..reports.table import of_dicts
from .results import OWN_TEST, ROUNDS, Results, Verdict

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


def csv_of(results: Results) -> str:
    """Return the table compare.csv: a row for each run, test and metric."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(value._asdict() for value in results.values)
    return text.getvalue()


def warnings(results: Results) -> list[str]:
    """Return why the comparison as a whole may be unfair, or its p too small."""
    found = []
    if results.unconverted:
        found.append(warning_of_unconverted(results.unconverted))
    if len(results.readings) > 1:
        found.append(warning_of_readings(results.readings))
    return found


def warning_of_unconverted(file: str) -> str:
    """Return what it means that a config loads a file of weights, which no norm converts."""
    return (
        f"The config loads {file!r}. If the file has weights of the compared norms, the plain norm "
        "starts trained. Norms that cannot load its tensors, such as EN, start untrained, which "
        "favours the plain norm; then give a local copy of the file as --weights, which is "
        "converted to each norm."
    )


def warning_of_readings(readings: Sequence[int]) -> str:
    """Return what readings at several numbers of seeds do to p, and how to plan without them."""
    *earlier, now = map(str, readings)
    share = false_positives(readings)
    return (
        f"This comparison was read before, at {' and '.join(earlier)} seeds, and now at {now}. A "
        f"norm that is equal to the first has a p below {ALPHA} at one of these readings in "
        f"{_percent(share)} of all comparisons, not in {_percent(ALPHA)}: p holds for one reading, "
        "at a number of seeds that was chosen before. Give all --seeds of the plan from the start, "
        "or test by fresh seeds alone."
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
        row["p"] = p_value(difference.p).removeprefix("= ") if is_tested else ""
        is_told = is_tested and not nothing_told(results, norm, test)
        row["not excluded"] = ends(*difference.left, digits) if is_told else ""
        row["verdict"] = label(verdicts[norm]) if norm in verdicts else ""
        rows.append(row)
    return rows


def decimals(results: Results) -> int:
    """Return how many decimals a tenth of a point has."""
    return 3 if results.point < 1 else 1


def label(verdict: Verdict) -> str:
    """Return the word of a verdict, and that a seen difference is within the margin."""
    is_small = verdict.word in ("better", "worse") and verdict.p_equivalent < ALPHA
    return f"{verdict.word}, within the margin" if is_small else verdict.word


def sentences(results: Results, test: str) -> list[str]:
    """Return a text for each norm but the baseline: what its seeds tell, beside the verdict."""
    digits, texts = decimals(results), []
    verdicts = results.verdicts[test]
    for norm, difference in results.differences[test].items():
        if difference is None:
            texts.append(f"{norm}: no seed has a result of both norms.")
        elif failed := failed_runs(results, norm, test):
            left = f"The other seeds differ by {interval(difference, digits)}"
            texts.append(f"{norm}: no test, as {failed}. {left}.")
        elif difference.seeds == 1:
            texts.append(f"{norm}: one seed shows nothing; give more --seeds.")
        elif results.are_equal(norm, test):
            equal = f"all {difference.seeds} seeds have the result of {results.norms[0]}"
            texts.append(f"{norm}: {equal}, so the norm probably had no effect; there is no test.")
        elif not difference.has_interval:
            same = f"all seeds have the same difference, {signed(difference.mean, digits)}"
            texts.append(f"{norm}: {same}, so its spread is unknown; give more --seeds.")
        elif reason := nothing_told(results, norm, test):
            p = p_value(difference.p)
            texts.append(f"{norm}: these seeds tell nothing yet (p {p}). {reason}")
        else:
            parts = (
                _answer(difference, verdicts[norm], results),
                _excluded(results, norm, test),
                _power(difference, verdicts[norm], results),
                _near_the_start(results, norm, test),
            )
            texts.append(f"{norm}: {' '.join(filter(None, parts))}")
    return texts


def failed_runs(results: Results, norm: str, test: str) -> str:
    """Return how many runs of the baseline and of a norm have no result, and why, if some have."""
    failed = {one: results.failed_seeds(one, test) for one in (results.norms[0], norm)}
    texts = []
    for one, reasons in sorted(failed.items(), key=lambda pair: not pair[1]):
        runs = len(reasons) + len(results.by_seed(one, test))
        causes = "; ".join(f"seed {k}: {text.partition(':')[0]}" for k, text in reasons.items())
        low, high = failure_rate(len(reasons), runs)
        rate = f"95 % interval of the rate: {_percent(low)} to {_percent(high)}"
        about = f"{causes}; {rate}" if causes else rate
        texts.append(f"{len(reasons)} of {runs} runs with {one} have no result ({about})")
    return ", ".join(texts) if any(failed.values()) else ""


def nothing_told(results: Results, norm: str, test: str) -> str:
    """Return why the seeds tell nothing yet of a norm that has a p, or "" if they tell anything."""
    difference = results.differences[test][norm]
    if results.verdicts[test][norm].word != "undecided" or difference is None:
        return ""
    if text := _near_the_start(results, norm, test):
        return text
    if difference.seeds == 2:
        return "Two differences do not tell how seeds vary; give five or more --seeds."
    if not _limits(results, norm, test):
        return f"The interval is wider than what {results.metric} can be; give more --seeds."
    return ""


def _near_the_start(results: Results, norm: str, test: str) -> str:
    """Return a warning if all values of a norm and the baseline are near zero, else ""."""
    values = [v for one in (results.norms[0], norm) for v in results.by_seed(one, test).values()]
    if results.largest is None or max(values) >= results.point:
        return ""
    return (
        f"All values are below {_size(results, 1)} of {results.largest:g}, as of models that have "
        "not learned; train longer, or check the training."
    )


def _answer(difference: Difference, verdict: Verdict, results: Results) -> str:
    """Return what is seen with its p, and whether the norms are equivalent within the margin."""
    baseline, word = results.norms[0], verdict.word
    by = f"by {abs(difference.mean):.{decimals(results)}f} (p {p_value(difference.p)})"
    text = {
        "undecided": f"no difference is seen (p {p_value(difference.p)})",
        "equivalent": f"equivalent to {baseline}",
        "no worse": f"no worse than {baseline}",
    }.get(word, f"{word} than {baseline} {by}")
    is_equivalent = results.margin is not None and verdict.p_equivalent < ALPHA
    # Better or worse: that it is not shown to be equivalent would read as a doubt.
    if results.margin is not None and (is_equivalent or word not in ("better", "worse")):
        within = f" within {_size(results, results.margin)}"
        if word == "no worse":
            text, within = f"{text}{within} (p {p_value(verdict.p_no_worse)})", ""
        if word != "equivalent":
            shown = "but " if is_equivalent else "not shown to be "
            text += f", {shown}equivalent"
        text += f"{within} (p {p_value(verdict.p_equivalent)})"
    return f"{text}."


def _excluded(results: Results, norm: str, test: str) -> str:
    """Return which losses and gains two one-sided tests at 5 % exclude, "" if no possible ones."""
    digits = decimals(results)
    limits = {n: f"{abs(v):.{digits}f}" for n, v in _limits(results, norm, test).items()}
    low, high = results.differences[test][norm].left
    if low > 0 or high < 0:
        name = "gain" if (low > 0) == results.higher_is_better else "loss"
        least, largest = sorted((abs(low), abs(high)))
        text = f"A {name} of less than {least:.{digits}f}"
        if name in limits:
            text += f" or more than {largest:.{digits}f}"
        return f"{text} is excluded (5 % each)."
    if not limits:
        return ""
    text = " and ".join(f"a {name} of more than {limit}" for name, limit in limits.items())
    excluded = "are excluded (5 % each)" if len(limits) > 1 else "is excluded (5 %)"
    return f"{text[0].upper()}{text[1:]} {excluded}."


def _limits(results: Results, norm: str, test: str) -> dict[str, float]:
    """Return the largest "loss" and "gain" not excluded, without those that the metric can't be."""
    low, high = results.differences[test][norm].left
    if not results.higher_is_better:
        return {"loss": high, "gain": low}
    limits = {"loss": low, "gain": high}
    if results.largest is not None:
        plain = fmean(results.by_seed(results.norms[0], test).values())
        return {n: v for n, v in limits.items() if -plain < v < results.largest - plain}
    return limits


def _power(difference: Difference, verdict: Verdict, results: Results) -> str:
    """Return how probably the seeds show a difference of the margin, and how many seeds do."""
    least, most = (f"{power:.2f}" for power in verdict.powers)
    text = (
        f"{difference.seeds} seeds show a difference of {_size(results, results.visible_points)} "
        f"with probability {least if least == most else f'{least} to {most}'}"
    )
    needed = verdict.seeds_needed
    if needed is None or needed > difference.seeds:
        count = f"at least {needed}" if needed else "more than 10,000"
        text += f"; plan {count} seeds for {POWER:.2f}"
    return f"{text}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _size(results: Results, points: float) -> str:
    """Format a number of points, or their value where a point is not 1."""
    if results.point != 1:
        return f"{points * results.point:g}"
    return "1 point" if points == 1 else f"{points:g} points"


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
            row[f"by {results.norms[0]}'s"] = f"{ratio:.2f}"
            if "memory" in results.steps[norm]:
                row["peak memory of a step"] = f"{results.steps[norm]['memory'] / 2**20:,.0f} MiB"
        runs = {v.seed: v.seconds for v in results.values if v.norm == norm and not v.failure}
        seconds = fmean([one for one in runs.values() if one] or [0.0])
        if seconds >= LONG:
            row["wall time of a run"] = str(timedelta(seconds=round(seconds)))
        rows.append({"norm": norm, **row})
    return rows if any(len(row) > 1 for row in rows) else []
