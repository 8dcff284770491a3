"""The answer about each norm in words: a verdict, a sentence, a reader's next step, and notes."""

from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

from ..reports.interval import ALPHA, MOST_SEEDS, Difference, ends, p_value
from .plain_states import too_few
from .results import OWN_TEST, Results

#: The least number of seeds for which a comparison is planned.
FEWEST = 5
#: What a reader can do next.
STEPS = {
    "use": "use {norm} in place of {baseline}.",
    "either": "use {baseline} or {norm}.",
    "keep": "keep {baseline}.",
    "seeds": "compare with at least {seeds} seeds.",
    "repair": "find the cause and correct it.",
}


class Answer(NamedTuple):
    """The answer of one test about one norm: its word, a sentence, and the next step."""

    word: str
    text: str
    next_step: str


def answers(results: Results, test: str) -> dict[str, Answer]:
    """Return norm -> what its seeds tell by a test, for all norms but the baseline."""
    return {norm: _answer(results, norm, test) for norm in results.norms[1:]}


def _answer(results: Results, norm: str, test: str) -> Answer:
    word, reason, p_equivalent = results.verdicts[test][norm]
    step, seeds = {"better": "use", "equivalent": "either"}.get(word, "keep"), FEWEST
    text = reason
    if reason:
        step = "seeds" if reason == too_few(results.runs(norm, test)) else "repair"
    elif word == "equivalent":
        margin = results.unit.size(results.margin)
        text = f"The gain is within {margin} of 0 (p {p_value(p_equivalent)})."
    else:
        difference = results.differences[test][norm]
        text = f"Gain: {gain(results, norm, test)}"
        if word == "undecided":
            seeds = _seeds_needed(results, difference)
            shown = "No difference is shown" if seeds else f"{MOST_SEEDS} seeds are too few"
            text = f"{shown}. {text}."
            step = "seeds" if seeds and seeds > difference.seeds else "keep"
        else:
            text = f"{text} (p {p_value(difference.p)})."
    next_step = STEPS[step].format(norm=norm, baseline=results.norms[0], seeds=seeds)
    return Answer(word, text, next_step)


def _seeds_needed(results: Results, difference: Difference) -> int | None:
    """Return how many seeds may decide; None if no practicable number does.

    Without a margin, no size of a difference is known that matters.
    """
    if results.margin is None:
        return FEWEST
    needed = difference.seeds_for(results.margin * results.unit.point)
    return needed and max(FEWEST, needed)


def gain(results: Results, norm: str, test: str) -> str:
    """Return the interval of a norm's gain, as far as the metric's ends allow it."""
    unit, difference = results.unit, results.differences[test][norm]
    low, high = unit.gain(difference.low, difference.high)
    if unit.ends is not None:
        plain = fmean(results.by_seed(results.norms[0], test).values())
        worst, best = unit.gain(*(end - plain for end in sorted(unit.ends)))
        low, high = max(low, worst), min(high, best)
    points = " points" if unit.name == "percent" else ""
    return ends(low, high, unit.digits) + points


def headline(results: Results) -> str:
    """Return one sentence on all norms, between what went wrong and what further tests tell."""
    test, (baseline, *others) = results.tests[0], results.norms
    if not others:
        return f"Only {baseline} was trained: give a second norm."
    found = answers(results, test)
    told = {norm: one for norm, one in found.items() if one.word != "not told"}
    parts = [*dict.fromkeys(found[norm].text for norm in others if norm not in told)]
    if told:
        parts.append(_advice(results, told))
    else:
        steps = dict.fromkeys(one.next_step for one in found.values())
        parts += [step[0].upper() + step[1:] for step in steps]
    for other in results.tests[1:]:
        words = [
            f"nothing is told of {norm}" if one.word == "not told" else f"{norm} is {one.word}"
            for norm, one in results.verdicts[other].items()
        ]
        parts.append(f"By {other}: {', '.join(words)}.")
    return " ".join(parts)


def _advice(results: Results, told: Mapping[str, Answer]) -> str:
    """Return which norm to use by the first test, whose answers ``told`` has, and all verdicts."""
    test, baseline = results.tests[0], results.norms[0]
    better, equivalent, undecided = (
        [norm for norm, one in told.items() if one.word == word]
        for word in ("better", "equivalent", "undecided")
    )
    chosen, further = better or equivalent or undecided or [*told], list[str]()
    if better:
        gains = " or ".join(gain(results, norm, test) for norm in better)
        text = f"Use {' or '.join(better)} in place of {baseline}: gain {gains}"
    elif equivalent:
        within = results.unit.size(results.margin)
        text = f"Use {' or '.join([baseline, *equivalent])}: they are equivalent within {within}"
    else:
        steps = {one.next_step for one in told.values()} - {STEPS["keep"].format(baseline=baseline)}
        further = [f"or {step.removesuffix('.')}" for step in sorted(steps)]
        names = f"none of {', '.join(chosen)} is" if chosen[1:] else f"{chosen[0]} is not"
        reason = f"{names} shown to be better" if undecided else f"{', '.join(chosen)} did worse"
        text = f"Keep {baseline}: {reason}"
    rest = [f"{norm} is {one.word}" for norm, one in told.items() if norm not in chosen]
    return "; ".join([text, *_costs(results, chosen), *rest, *further]) + "."


def _costs(results: Results, norms: list[str]) -> list[str]:
    """Return what steps of norms take by the baseline's, if they were measured."""
    times = {norm: one["seconds"] for norm, one in results.steps.items()}
    plain = times.get(results.norms[0])
    known = [norm for norm in norms if plain and norm in times]
    ratios = [f"{times[norm] / plain:.2f} times {results.norms[0]}'s with {norm}" for norm in known]
    return [f"a step takes {', '.join(ratios)}"] if ratios else []


def compared_by(results: Results) -> str:
    """Return by which values the norms are compared, which are better, and the margin."""
    rule = "" if results.rule == "last" else f", the {results.rule} of each run"
    better = "higher" if results.higher_is_better else "lower"
    text = f"Compared by {results.metric}{rule}: {better} is better"
    margin = results.margin
    return f"{text}." if margin is None else f"{text}; the margin is {results.unit.size(margin)}."


def notes(results: Results) -> list[str]:
    """Return what else is to know about verdicts and p, as notes under the tables."""
    found, verdicts = [], results.verdicts[results.tests[0]]
    for norm, one in verdicts.items():
        if one.word in ("better", "worse") and one.p_equivalent < ALPHA:
            found.append(f"{norm} is {one.word} by less than the margin.")
    if sum(one.word == "better" for one in verdicts.values()) > 1:
        found.append(f"Norms are compared with {results.norms[0]}, not with each other.")
    if any(one.word == "undecided" for one in verdicts.values()):
        found.append("Undecided does not mean that the norms are equal.")
    of_tests = (one for of_test in results.differences.values() for one in of_test.values())
    if (count := len(results.read)) and any(one and one.has_interval for one in of_tests):
        tests = f"all tests that this and earlier calls read here ({count})"
        found.append(f"p and intervals are corrected for {tests}: {'; '.join(_listed(results))}.")
    if failures := _repeated(results):
        found.append(f"Runs were repeated after a failure: {', '.join(failures)}.")
    if results.left_out:
        runs = {(value.norm, value.seed) for value in results.left_out}
        found.append(f"The folder has {len(runs)} other runs, which this call leaves out.")
    return found


def warnings(results: Results) -> list[str]:
    """Return why the comparison as a whole may be unfair."""
    found = [*results.confounded]
    if results.unconverted:
        found.append(warning_of_unconverted(results.unconverted))
    largest = results.unit.largest
    values = [value for of_seeds in results.main.values() for value in of_seeds.values()]
    if largest is not None and not all(0 <= value <= largest for value in values):
        found.append(
            f"{results.metric} has values outside 0 to {largest:g}: it is no {results.unit.name}."
        )
    return found


def warning_of_unconverted(file: str) -> str:
    """Return what it means that a config loads a file of weights, which no norm converts."""
    return (
        f"The config loads {file!r}. If the file has weights of the compared norms, the plain norm "
        "starts trained. Norms that cannot load its tensors, such as EN, start untrained, which "
        "favours the plain norm; then give a local copy of the file as --weights, which is "
        "converted to each norm."
    )


def _listed(results: Results) -> list[str]:
    """Return the tests that were read in the folder, those of the same seeds together."""
    norms: dict[tuple, list[str]] = {}
    for baseline, norm, test, metric, seeds in results.read:
        by = metric if test == OWN_TEST else f"{metric}, {test}"
        numbers = " ".join(map(str, seeds))
        norms.setdefault((baseline, by, numbers), []).append(norm)
    return [
        f"{', '.join(of_test)} minus {baseline} by {by}, seeds {numbers}"
        for (baseline, by, numbers), of_test in norms.items()
    ]


def _repeated(results: Results) -> list[str]:
    """Return the runs with a result that failed before, by their seeds."""
    failures = results.history.failures
    runs = [f"{n}, seed {k}" for n, k, test, _ in failures if k in results.by_seed(n, test)]
    return [*dict.fromkeys(runs)]
