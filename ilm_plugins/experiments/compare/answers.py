"""The answer about each norm in words: a verdict, its reasons, and a reader's next step."""

from collections.abc import Collection, Sequence
from statistics import fmean
from typing import NamedTuple

from ..reports.interval import (
    ALPHA,
    MOST_SEEDS,
    POWER,
    Difference,
    failure_rate,
    false_positives,
    interval,
    p_value,
    signed,
)
from .results import Results, Verdict

#: The answer without a difference.
NO_SEED = "no seed has a result of both norms."
#: What to do next where no p is told.
MORE_SEEDS = "compare with at least five seeds."


class Answer(NamedTuple):
    """The answer of one test about one norm."""

    #: The word of the verdict, and its words in tables.
    word: str
    label: str
    text: str
    #: The next step of a reader; "" for a further test.
    next_step: str
    #: Whether the seeds tell anything of the differences that are possible.
    is_told: bool


def answers(results: Results, test: str) -> dict[str, Answer]:
    """Return norm -> what its seeds tell by a test, for all norms but the baseline."""
    first, *others = results.tests
    found = {}
    for norm, verdict in results.verdicts[test].items():
        text, after, is_told = _answer(results, norm, test)
        words = {other: results.verdicts[other][norm].word for other in others}
        differ = [f"{word} by {other}" for other, word in words.items() if word != verdict.word]
        if test == first and differ:
            after = f"{after} But {norm} is {', '.join(differ)}."
        after = after if test == first else ""
        found[norm] = Answer(verdict.word, label_of(verdict), text, after, is_told)
    return found


def _answer(results: Results, norm: str, test: str) -> tuple[str, str, bool]:
    """Return the text of an answer, the next step by this test, and whether anything is told."""
    difference, verdict = results.differences[test][norm], results.verdicts[test][norm]
    baseline, digits = results.norms[0], decimals(results)
    reasons = [*results.failed_seeds(baseline, test).values()]
    reasons += results.failed_seeds(norm, test).values()
    if reasons:
        text = NO_SEED
        if difference is not None:
            left = f"The other seeds differ by {interval(difference, digits)}"
            text = f"no test, as {_failed_runs(results, norm, test)}. {left}."
        if any(reason.startswith("diverged") for reason in reasons):
            after = "compare again with a lower learning rate and another --output; runs diverged."
            return text, after, False
        after = (
            'correct the cause below, in "No result", and give the same command again; of runs '
            "that ended without an error, remove the folders first."
        )
        return text, after, False
    if difference is None:
        return NO_SEED, MORE_SEEDS, False
    if difference.seeds == 1:
        return "one seed shows nothing; give more --seeds.", MORE_SEEDS, False
    if results.are_equal(norm, test):
        equal = f"all {difference.seeds} seeds have the result of {baseline}"
        text = f"{equal}, so the norm probably had no effect; there is no test."
        after = f"check that the training uses {norm}: all results are {baseline}'s."
        return text, after, False
    if not difference.has_interval:
        same = f"all seeds have the same difference, {signed(difference.mean, digits)}"
        return f"{same}, so its spread is unknown; give more --seeds.", MORE_SEEDS, False
    if reason := _nothing_told(results, norm, test):
        text = f"these seeds tell nothing yet (p {p_value(difference.p)}). {reason}"
        return text, _next_step(results, norm, test), False
    parts = (
        _seen(difference, verdict, results),
        _excluded(results, norm, test),
        _power(difference, verdict, results) if verdict.word == "undecided" else "",
        _near_the_start(results, norm, test),
    )
    return " ".join(filter(None, parts)), _next_step(results, norm, test), True


def _next_step(results: Results, norm: str, test: str) -> str:
    """Return the next step of a reader about a norm that has a p-value."""
    difference, verdict = results.differences[test][norm], results.verdicts[test][norm]
    baseline = results.norms[0]
    if _near_the_start(results, norm, test):
        return "train longer, or check the training."
    if len(results.readings) > 1:
        return f"test {norm} by fresh seeds alone, as the warning above says."
    if difference.seeds == 2:
        first = max(value.seed for value in results.values) + 1
        fresh = " ".join(map(str, range(first, first + 5)))
        return f"compare by five fresh seeds, such as --seeds {fresh}."
    if _nothing_told(results, norm, test):
        return "check why the runs differ so much."
    if "within the margin" in label_of(verdict):
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
    if verdict.powers[0] >= POWER:
        return f"keep {baseline}; a difference of {size} would probably have shown."
    count = f"at least {needed}" if needed > difference.seeds else "more"
    return (
        f"keep {baseline}, or, if a difference of {size} matters to you, plan a new comparison of "
        f"{count} fresh seeds."
    )


def label_of(verdict: Verdict) -> str:
    """Return the word of a verdict, and that a seen difference is within the margin."""
    is_small = verdict.word in ("better", "worse") and verdict.p_equivalent < ALPHA
    return f"{verdict.word}, within the margin" if is_small else verdict.word


def _failed_runs(results: Results, norm: str, test: str) -> str:
    """Return how many runs of the baseline and of a norm have no result, and why."""
    failed = {one: results.failed_seeds(one, test) for one in (results.norms[0], norm)}
    texts = []
    for one, reasons in sorted(failed.items(), key=lambda pair: not pair[1]):
        runs = len(reasons) + len(results.by_seed(one, test))
        causes = "; ".join(f"seed {k}: {text.partition(':')[0]}" for k, text in reasons.items())
        low, high = failure_rate(len(reasons), runs)
        rate = f"95 % interval of the rate: {_percent(low)} to {_percent(high)}"
        about = f"{causes}; {rate}" if causes else rate
        texts.append(f"{len(reasons)} of {runs} runs with {one} have no result ({about})")
    return ", ".join(texts)


def _nothing_told(results: Results, norm: str, test: str) -> str:
    """Return why the seeds tell nothing yet of a norm that has a p, or "" if they tell anything."""
    difference = results.differences[test][norm]
    if results.verdicts[test][norm].word != "undecided" or difference is None:
        return ""
    if text := _near_the_start(results, norm, test):
        return text
    if difference.seeds == 2:
        return "Two differences do not tell how seeds vary."
    if not _limits(results, norm, test):
        return f"The interval is wider than what {results.metric} can be."
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


def _seen(difference: Difference, verdict: Verdict, results: Results) -> str:
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
    if results.verdicts[test][norm].word in ("better", "worse"):
        name = "gain" if (low > 0) == results.higher_is_better else "loss"
        least, largest = sorted((abs(low), abs(high)))
        text = f"A {name} of less than {least:.{digits}f}"
        if name in limits:
            text += f" or more than {largest:.{digits}f}"
        return f"{text} is excluded (5 % each)."
    # Without correction, 0 may be excluded where p does not exclude it: that side is left out.
    if low > 0 or high < 0:
        limits.pop("loss" if (low > 0) == results.higher_is_better else "gain", None)
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
        count = f"at least {needed}" if needed else f"more than {MOST_SEEDS:,}"
        text += f"; plan {count} seeds for {POWER:.2f}"
    return f"{text}."


def warnings(results: Results) -> list[str]:
    """Return why the comparison as a whole may be unfair, or its p too small."""
    found = []
    if results.unconverted:
        found.append(warning_of_unconverted(results.unconverted))
    if results.other_code:
        found.append(f"{results.other_code}.")
    if len(results.readings) > 1:
        found.append(warning_of_readings(results.readings))
    values = [value for of_seeds in results.main.values() for value in of_seeds.values()]
    if results.higher_is_better and results.point < 1 < max(values, default=0):
        found.append(f"{results.metric} has values above 1, so it is no fraction: --unit percent.")
    return found


def warning_of_unconverted(file: str) -> str:
    """Return what it means that a config loads a file of weights, which no norm converts."""
    return (
        f"The config loads {file!r}. If the file has weights of the compared norms, the plain norm "
        "starts trained. Norms that cannot load its tensors, such as EN, start untrained, which "
        "favours the plain norm; then give a local copy of the file as --weights, which is "
        "converted to each norm."
    )


def warning_of_readings(readings: Sequence[Collection[int]]) -> str:
    """Return what readings at several numbers of seeds do to p, and how to plan without them."""
    *earlier, now = (str(len(seeds)) for seeds in readings)
    share = false_positives(readings)
    return (
        f"This comparison was read before, at {' and '.join(earlier)} seeds, and now at {now}. A "
        f"norm that is equal to the first has a p below {ALPHA} at one of these readings in "
        f"{_percent(share)} of all comparisons, not in {_percent(ALPHA)}: p holds for one reading, "
        "at a number of seeds that was chosen before. Give all --seeds of the plan from the start, "
        "or test by fresh seeds alone."
    )


def decimals(results: Results) -> int:
    """Return how many decimals a tenth of a point has."""
    return 3 if results.point < 1 else 1


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _size(results: Results, points: float) -> str:
    """Format a number of points, or their value where a point is not 1."""
    if results.point != 1:
        return f"{points * results.point:g}"
    return "1 point" if points == 1 else f"{points:g} points"
