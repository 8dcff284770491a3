"""The report of a comparison: compare.md, compare.csv, and the words on each norm."""

import pandas as pd

from .results import OWN_TEST, Results
from .statistics import ALPHA, Difference


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
        title = f"## {results.metric}" + f", {test}" * (test != OWN_TEST)
        lines += [title, "", _markdown(table(results, test))]
        lines += ["", *(f"- {text}" for text in sentences(results, test)), ""]
    if costs := cost_table(results):
        lines += ["## Cost", "", _markdown(pd.DataFrame(costs))]
        lines += ["", "A step is the median of 7 in turn with the other norms' steps.", ""]
    if results.own:
        lines += ["## Settings of one norm", ""]
        lines += [f"- {norm}: `{' '.join(words)}`" for norm, words in results.own.items()] + [""]
    if results.starts:
        lines += ["## At the start", ""]
        lines += [f"- {norm}: {text}" for norm, text in results.starts.items()]
        lines += ["", "Before training, compared with the baseline's model on one batch.", ""]
    if results.failures:
        lines += ["## Without a result", ""]
        lines += [f"- {v.norm}, seed {v.seed}: {v.failure}" for v in results.failures] + [""]
    others = len(results.norms) - 1
    corrected = ""
    if others > 1:
        corrected = f", by Holm's correction for {others} norms, which the intervals do not have"
    lines += [
        "Differences are paired by seed; behind them is the 95 % interval of Student's t. p is "
        f"that of the paired t-test{corrected}. A number of seeds shows a difference if their "
        "t-test sees it in four of five comparisons.",
        "",
    ]
    return "\n".join(lines)


def _markdown(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True)


def table(results: Results, test: str) -> pd.DataFrame:
    """Return a row for each norm: mean, deviation, difference from the baseline, p."""
    baseline, rows, digits = results.norms[0], [], decimals(results)
    differences = results.differences(test)
    for norm in results.norms:
        values = pd.Series(results.by_seed(norm, test), dtype=float)
        row = {"norm": norm, "seeds": len(values), results.metric: "no result"}
        if len(values):
            row[results.metric] = f"{values.mean():.{digits}f}"
        if len(values) > 1:
            row[results.metric] += f" ± {values.std():.{digits}f}"
        found = differences.get(norm)
        row[f"minus {baseline} [95 %]"] = interval(found, digits) if found else ""
        row["p"] = f"{found.p:.3f}" if found and found.seeds > 1 else ""
        rows.append(row)
    return pd.DataFrame(rows)


def decimals(results: Results) -> int:
    """Return how many decimals a tenth of a point has."""
    return 3 if results.point < 1 else 1


def interval(found: Difference, digits: int) -> str:
    text = f"{found.mean:+.{digits}f}"
    if found.seeds > 1:
        text += f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return text


def sentences(results: Results, test: str) -> list[str]:
    """Return, for each norm but the baseline, what its seeds show."""
    digits = decimals(results)
    texts = []
    for norm, found in results.differences(test).items():
        if found is None:
            texts.append(f"{norm}: no seed has a result of both norms.")
        elif found.seeds == 1:
            texts.append(f"{norm}: one seed shows nothing; give more --seeds.")
        else:
            texts.append(f"{norm}: {_verdict(found, results, digits)}")
    return texts


def _verdict(found: Difference, results: Results, digits: int) -> str:
    baseline, point = results.norms[0], results.point
    if found.p < ALPHA:
        side = "above" if found.mean > 0 else "below"
        seen = f"{abs(found.mean):.{digits}f} {side} {baseline} (p = {found.p:.3f})."
    else:
        seen = (
            f"no difference was seen; {found.seeds} seeds would show differences above "
            f"{found.visible:.{digits}f}."
        )
    seeds = found.seeds_for(point)
    return f"{seen} A difference of {point:g} needs {seeds or 'over 10,000'} seeds."


def cost_table(results: Results) -> list[dict[str, str]]:
    """Return a row for each norm: parameters, time of a step by the baseline's, memory."""
    rows = []
    for norm, count in results.parameters.items():
        row = {"norm": norm, "parameters": f"{count:,}"}
        if norm in results.steps and results.norms[0] in results.steps:
            seconds = results.steps[norm]["seconds"]
            ratio = seconds / results.steps[results.norms[0]]["seconds"]
            row["step"] = f"{seconds:.3f} s"
            row[f"by {results.norms[0]}'s"] = f"{ratio:.2f}"
            if "memory" in results.steps[norm]:
                row["peak memory of a step"] = f"{results.steps[norm]['memory'] / 2**20:,.0f} MiB"
        rows.append(row)
    return rows
