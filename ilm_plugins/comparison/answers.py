"""The answer about each norm in words: a verdict, a sentence, a reader's next step, and notes."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from ..reports.interval import ALPHA, MOST_SEEDS, Difference, ends, p_value, signed
from .plain_states import FEWEST
from .results import OWN_TEST, Reading, Results
from .unit import UNITS

NOT_TESTED = "not tested"
#: What a reader can do next.
STEPS = {
    "use": "use {norm} in place of {baseline}.",
    "either": "use {baseline} or {norm}.",
    "keep": "{keep}.",
    "seeds": "compare with at least {seeds} seeds.",
    "add": "{keep}, or compare with {seeds} seeds in all, enough to show {size}.",
    "more": "{keep}, or compare with at least {seeds} seeds.",
    "many": "{keep}: to show {size} needs more than {most} seeds.",
    "repeat": "correct the cause (see No result); the same command then repeats failed runs.",
    "repair": "find the cause; often the learning rate is too high. Remove a run to repeat it.",
    "broken": "find the cause and correct it.",
    "harder": "compare by a harder test, or by another metric.",
}
#: Verdict -> the next step, where the runs are tested; an undecided norm's depends on its seeds.
STEP_OF = {"better": "use", "worse": "keep", "equivalent": "either"}


class Answer(NamedTuple):
    """The answer of one test about one norm: its word, a sentence, and the next step."""

    word: str
    text: str
    next_step: str


def answers(results: Results, test: str) -> dict[str, Answer]:
    """Return norm -> what its seeds tell by a test, for all norms but the baseline."""
    return {norm: _answer(results, norm, test) for norm in results.norms[1:]}


def _answer(results: Results, norm: str, test: str) -> Answer:
    word, state, p_equivalent = results.verdicts[test][norm]
    values = {"norm": norm, "baseline": results.norms[0], "seeds": FEWEST, "most": MOST_SEEDS}
    better = [name for name, it in results.verdicts[test].items() if it.word == "better"]
    values["keep"] = f"use {' or '.join(better)}" if better else f"keep {results.norms[0]}"
    if state is not None:
        return Answer(word, state.reason, STEPS[state.step].format(**values))
    difference, text = results.differences[test][norm], gain(results, norm, test)
    if word == "undecided":
        step, text = "add", f"No difference is shown. {text}."
        size = abs(difference.mean)
        shown = f"the difference seen ({results.unit.shown(size)})"
        if results.margin is not None:
            size = results.margin * results.unit.point
            shown = f"a difference of the margin ({results.unit.size(results.margin)})"
        needed = _seeds_needed(results, difference, size)
        values |= {"seeds": needed or FEWEST, "size": shown}
        if needed is None:
            step = "more" if difference.seeds < FEWEST and results.margin is None else "many"
        elif needed <= difference.seeds:
            step = "keep"
    elif word == "equivalent":
        step, margin = STEP_OF[word], results.unit.size(results.margin)
        text = f"{text}, within {margin} (p {p_value(p_equivalent)})."
    else:
        step, text = STEP_OF[word], f"{text}, p {p_value(difference.p)}."
    return Answer(word, text, STEPS[step].format(**values))


def _seeds_needed(results: Results, difference: Difference, size: float) -> int | None:
    """Return how many seeds show a difference of a size in the next look, None for too many."""
    looks = sum(bool(look.readings) for look in results.looks)
    tests = (looks + 1) * (looks + 2) * (len(results.norms) - 1) * len(results.tests)
    needed = difference.corrected(tests).seeds_for(size)
    return needed and max(FEWEST, needed)


def gain(results: Results, norm: str, test: str) -> str:
    """Return the mean and the interval of a norm's gain or loss, within the metric's ends."""
    unit, difference = results.unit, results.differences[test][norm]
    mean, _ = unit.gain(difference.mean, difference.mean)
    low, high = unit.gain(difference.low, difference.high)
    if unit.ends is not None:
        plain = fmean(results.by_seed(results.norms[0], test).values())
        worst, best = unit.gain(*(end - plain for end in sorted(unit.ends)))
        low, high = max(low, worst), min(high, best)
    points = " points" if unit.name == "percent" else ""
    if high < 0:
        size, *both = (f"{-end:.{unit.digits}f}" for end in (mean, high, low))
        return f"Loss: {size}{points} (95 %: {' to '.join(both)})"
    return f"Gain: {signed(mean, unit.digits)}{points} (95 %: {ends(low, high, unit.digits)})"


def headline(results: Results) -> str:
    """Return one answer about all norms, then what was not tested, then what other tests tell."""
    test, (baseline, *others) = results.tests[0], results.norms
    if not others:
        return f"Only {baseline} was trained: give a second norm."
    answer_of = answers(results, test)
    reasons = [*dict.fromkeys(a.text for a in answer_of.values() if a.word == NOT_TESTED)]
    tested = {norm: answer for norm, answer in answer_of.items() if answer.word != NOT_TESTED}
    if tested:
        parts = [_advice(results, tested), *reasons]
        if untested := [norm for norm in answer_of if norm not in tested]:
            parts.insert(1, f"Not tested: {', '.join(untested)}.")
    else:
        steps = dict.fromkeys(answer.next_step for answer in answer_of.values())
        parts = [*(step[0].upper() + step[1:] for step in steps), *reasons]
    for other in results.tests[1:]:
        words = [f"{norm} is {verdict.word}" for norm, verdict in results.verdicts[other].items()]
        parts.append(f"By {other}: {', '.join(words)}.")
    return " ".join(parts)


def _advice(results: Results, tested: Mapping[str, Answer]) -> str:
    """Return which norm to use by the first test, whose answers are ``tested``, and why."""
    test, baseline = results.tests[0], results.norms[0]
    norms_of: dict[str, list[str]] = {}
    for norm, answer in tested.items():
        norms_of.setdefault(answer.word, []).append(norm)
    # The verdict on which the advice rests.
    word = next(word for word in ("better", "equivalent", "undecided", "worse") if word in norms_of)
    norms = norms_of[word]
    if word == "better":
        gains = " or ".join(gain(results, norm, test).removeprefix("Gain: ") for norm in norms)
        text = f"Use {' or '.join(norms)} in place of {baseline}: gain {gains}"
    elif word == "equivalent":
        margin = results.unit.size(results.margin)
        names = ", ".join([baseline, *norms[:-1]])
        text = f"Use {names} or {norms[-1]}: they are equivalent within {margin}"
    elif word == "undecided":
        names = f"none of {', '.join(norms)} is" if norms[1:] else f"{norms[0]} is not"
        text = f"Keep {baseline}, or add seeds: {names} shown to be better"
    else:
        text = f"Keep {baseline}: {', '.join(norms)} did worse"
    others = [f"{norm} is {answer.word}" for norm, answer in tested.items() if norm not in norms]
    return "; ".join([text, *_costs(results, norms), *others]) + "."


def _costs(results: Results, norms: list[str]) -> list[str]:
    """Return what steps of norms take by the baseline's, if they were measured."""
    times = {norm: step["seconds"] for norm, step in results.steps.items()}
    plain = times.get(results.norms[0])
    known = [norm for norm in norms if plain and norm in times]
    ratios = [f"{times[norm] / plain:.2f} times {results.norms[0]}'s with {norm}" for norm in known]
    return [f"a step takes {', '.join(ratios)}"] if ratios else []


def compared_by(results: Results) -> str:
    """Return by which values the norms are compared, which are better, and the margin."""
    better = "higher" if results.higher_is_better else "lower"
    text = f"Compared by {results.measure or results.metric}: {better} is better"
    margin = results.margin
    return f"{text}." if margin is None else f"{text}; the margin is {results.unit.size(margin)}."


def notes(results: Results) -> list[str]:
    """Return what else is to know about verdicts and p, as notes under the tables."""
    verdicts = results.verdicts[results.tests[0]]
    words = [verdict.word for verdict in verdicts.values()]
    texts = [
        f"{norm} is {verdict.word} by less than the margin."
        for norm, verdict in verdicts.items()
        if verdict.word in ("better", "worse") and verdict.p_equivalent < ALPHA
    ]
    if words.count("better") > 1:
        texts.append(f"Norms are compared with {results.norms[0]}, not with each other.")
    if "undecided" in words:
        texts.append("Undecided does not mean that the norms are equal.")
    if looks := [look.readings for look in results.looks if look.readings]:
        listed = "; ".join(f"call {i}: {_listed(look)}" for i, look in enumerate(looks, 1))
        texts.append(
            "p and intervals are corrected, so that equal norms differ in at most 5 % of folders, "
            "whenever you stop: call k, which reads n new differences, multiplies their p by "
            f"k(k + 1)n. Read here, {listed}."
        )
    margins = {look.margin: None for look in results.looks} | {results.margin: None}
    if None in margins:
        del margins[None]
    if len(margins) > 1:
        texts.append(f"Calls had margins of {', '.join(map(results.unit.size, margins))}.")
    if results.repeats:
        listed = "; ".join(_repeat(results, run) for run in results.repeats)
        texts.append(f"Runs with a result were repeated: {listed}.")
    if results.left_out:
        runs = {(value.norm, value.seed) for value in results.left_out}
        texts.append(f"The folder has {len(runs)} other runs, which this call leaves out.")
    return texts


def warnings(results: Results) -> list[str]:
    """Return why the comparison as a whole may be unfair."""
    texts = [*results.confounded]
    if results.unconverted:
        texts.append(warning_of_unconverted(results.unconverted))
    unit = UNITS[results.unit_name or results.unit.name]
    if unit.exceeded(v for of_seeds in results.main.values() for v in of_seeds.values()):
        ends_of_unit = f"outside 0 to {unit.largest:g}: it is no {unit.name}."
        texts.append(f"{results.metric} has values {ends_of_unit}")
    return texts


def warning_of_unconverted(file: str) -> str:
    """Return what it means that a config loads a file of weights, which no norm converts."""
    return (
        f"The config loads {file!r}. If the file has weights of the compared norms, the plain norm "
        "starts trained. Norms that cannot load its tensors, such as EN, start untrained, which "
        "favours the plain norm; then give a local copy of the file as --weights, which is "
        "converted to each norm."
    )


def _listed(readings: Sequence[Reading]) -> str:
    """Return the tests of one look as text; tests with the same seeds share their seeds."""
    pairs: dict[tuple[str, ...], list[str]] = {}
    for reading in readings:
        by = [reading.measure] if reading.test == OWN_TEST else [reading.measure, reading.test]
        seeds = f"seeds {' '.join(map(str, reading.seeds))}"
        pairs.setdefault((", ".join(by), seeds), []).append(" and ".join(reading.norms))
    return "; ".join(f"{', '.join(norms)} by {by}, {seeds}" for (by, seeds), norms in pairs.items())


def _repeat(results: Results, run: tuple[str, int, str]) -> str:
    """Return all results of a run that was repeated."""
    norm, seed, test = run
    values = [
        "no result" if value is None else f"{value:.{results.unit.digits}f}"
        for value in results.repeats[run]
    ]
    of_test = "" if test == OWN_TEST else f", {test}"
    return f"{norm}, seed {seed}{of_test}: {', then '.join(values)}"
