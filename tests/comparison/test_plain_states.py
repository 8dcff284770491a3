"""How often verdicts and rules are wrong about equal norms, by simulated comparisons."""

import numpy as np
import pytest
from scipy import stats

from ilm_plugins.comparison import plain_states as rules
from ilm_plugins.comparison.answers import answers
from ilm_plugins.comparison.results import OWN_TEST, History, Results, Value
from ilm_plugins.comparison.unit import UNITS, unit_of

EMPTY = History()
#: Three standard errors of a share of 5 % in so many simulated folders.
FOLDERS = 20_000
ERROR = 3 * (0.05 * 0.95 / FOLDERS) ** 0.5


def p_of(differences):
    return stats.ttest_1samp(differences, 0, axis=-1).pvalue


def decided(*looks):
    """The share of folders with a verdict, of looks in turn, each a list of p by test."""
    factors = [k * (k + 1) * len(look) for k, look in enumerate(looks, 1)]
    ps = [np.multiply(look, factor) for look, factor in zip(looks, factors, strict=True)]
    return (np.concatenate(ps).min(axis=0) < 0.05).mean()


@pytest.mark.parametrize("kind", ["fresh seeds", "more seeds", "norms", "norms in turn"])
def test_whatever_is_read_in_turn_equal_norms_differ_in_at_most_five_percent(kind):
    """Without the correction, 10 to 25 %."""
    draws = np.random.default_rng(0).normal(size=(FOLDERS, 7, 25))
    plain, *norms = np.moveaxis(draws, 1, 0)
    one, ps_of_norms = norms[0] - plain, [p_of((norm - plain)[:, :5]) for norm in norms]
    looks = {
        "fresh seeds": [[p_of(one[:, k : k + 5])] for k in range(0, 25, 5)],
        "more seeds": [[p_of(one[:, :k])] for k in (3, 5, 10, 20)],
        "norms": [ps_of_norms],
        "norms in turn": [[p] for p in ps_of_norms],
    }[kind]
    assert (np.concatenate(looks).min(axis=0) < 0.05).mean() > 0.09
    assert decided(*looks) < 0.05 + ERROR


@pytest.mark.parametrize("seeds, together", [(5, 1), (10, 1), (5, 3)])
def test_three_repeats_of_the_worst_runs_decide_in_at_most_five_percent(seeds, together):
    """Without the correction, 10 to 20 %."""
    rng = np.random.default_rng(1)
    plain, ours = rng.normal(size=(2, FOLDERS, seeds))
    looks = []
    for _ in range(1 + 3 // together):
        looks.append([p_of(ours - plain)])
        worst = np.argsort(ours - plain, axis=1)[:, :together]
        np.put_along_axis(ours, worst, rng.normal(size=worst.shape), axis=1)
    assert (np.concatenate(looks).min(axis=0) < 0.05).mean() > 0.09
    assert decided(*looks) < 0.05 + ERROR


def compared(runs, failed=(), history=EMPTY, **options):
    """Return the results of norms, their values by seed; ``failed`` are norms and seeds."""
    values = [
        Value(norm, seed, OWN_TEST, "AP", float(value))
        for norm, of_norm in runs.items()
        for seed, value in enumerate(of_norm)
        if (norm, seed) not in failed
    ]
    values += [Value(norm, seed, OWN_TEST, "AP", None, "failed") for norm, seed in failed]
    return Results([*runs], values, "AP", history=history, **options)


def followed(results):
    """Return the history that the next call of the folder has."""
    reported = [(*run, value) for run, value in results.reported.items()]
    return History(results=[*results.history.results, *reported], looks=results.looks)


def factor_of(results, norm="EN"):
    return results.differences[OWN_TEST][norm].tests


def test_results_are_corrected_as_simulated():
    """Fresh draws in five calls, each of two norms."""
    history = History()
    for look in range(1, 6):
        plain, *ours = draws = np.random.default_rng(look).normal(50, 1, size=(3, 5))
        names = ["BN", f"EN{look}", f"SN{look}"]
        results = compared(dict(zip(names, draws, strict=True)), history=history)
        history = followed(results)
        for norm, values in zip(names[1:], ours, strict=True):
            difference = results.differences[OWN_TEST][norm]
            expected = min(1, look * (look + 1) * 2 * p_of(values - plain))
            assert difference.p == pytest.approx(expected)
            assert (difference.low > 0 or difference.high < 0) == (expected < 0.05)


RUNS = {"BN": [70.0, 71.0, 72.0, 70.5, 71.5], "EN": [70.9, 71.6, 70.2, 71.7, 72.0]}


def test_the_same_reading_is_one_look_whichever_norm_is_the_baseline():
    first = compared(RUNS)
    again = compared({norm: RUNS[norm] for norm in ("EN", "BN")}, history=followed(first))
    assert len(again.looks) == factor_of(first) / 2 == factor_of(again, "BN") / 2 == 1


@pytest.mark.parametrize(
    "change",
    [
        {"measure": "AP of val.json"},
        {"measure": "AP of test.json, the max of each run"},
        {"runs": {norm: values[:4] for norm, values in RUNS.items()}},
        {"runs": RUNS | {"EN": [70.9, 71.6, 73.1, 71.7, 72.0]}},
    ],
    ids=["another file", "another rule", "other seeds", "a run that was repeated"],
)
def test_all_that_chooses_a_readings_numbers_makes_it_another(change):
    first = compared(RUNS, measure="AP of test.json")
    options = {"runs": RUNS, "measure": "AP of test.json"} | change
    assert factor_of(compared(**options, history=followed(first))) == 2 * 3


def test_a_failed_seed_costs_no_test():
    """Nothing was told of its norm; the repeated run then completes the first look."""
    failed = compared(RUNS, failed=[("EN", 2)])
    assert failed.verdicts[OWN_TEST]["EN"].word == "not tested"
    assert factor_of(compared(RUNS, history=followed(failed))) == 2


# ---- rules before any test


def state(plain, ours, unit="percent", higher=True):
    values = {"GN": dict(enumerate(plain)), "EN": dict(enumerate(ours))}
    of_values = unit_of(unit, higher, [plain, ours])
    return rules.state(rules.Runs("GN", "EN", values, {"GN": {}, "EN": {}}, of_values))


def share(draws, is_wrong, **options):
    return np.mean([is_wrong(state(*draw, **options)) for draw in draws])


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("deviation", [1.0, 2.0])
def test_ties_of_a_coarse_metric_are_no_fault_of_the_training(seeds, deviation):
    """Of 50 test images, a metric has steps of 2 points."""
    draws = 2 * np.round(np.random.default_rng(3).normal(72, deviation, (2000, 2, seeds)) / 2)
    found = [state(*draw) for draw in draws]
    assert sum(one is not None for one in found) / len(draws) < 0.7
    error = 3 * (0.05 * 0.95 / len(draws)) ** 0.5
    assert np.mean([one is not None and one.step == "repair" for one in found]) < 0.05 + error


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_equal_norms_with_losses_of_any_size_are_tested(seeds, sigma):
    draws = np.exp(np.random.default_rng(4).normal(0, sigma, (2000, 2, seeds)))
    assert share(draws, bool, unit="number", higher=False) < 0.05


def collapsing(number, seeds, count=200):
    """Draws of norms of which one has a number of runs that did not learn."""
    rng = np.random.default_rng(5)
    draws = rng.normal(50, 2, size=(count, 2, seeds))
    for _, ours in draws:
        ours[rng.permutation(seeds)[:number]] = rng.uniform(0, 6, number)
    return draws


@pytest.mark.parametrize("seeds, number", [(3, 1), (5, 1), (5, 2), (5, 4), (10, 3)])
def test_runs_that_collapsed_are_counted(seeds, number):
    told = f"{number} of {seeds} runs with EN "
    draws = collapsing(number, seeds)
    assert share(draws, lambda one: one is not None and one.reason.startswith(told)) > 0.95


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_norm_of_which_all_runs_collapsed_is_worse_not_broken_in_one(seeds):
    assert share(collapsing(seeds, seeds), bool) < 0.05


@pytest.mark.parametrize(
    "low, high, reason",
    [(0, 0.99, "No run has learned"), (99.9, 100, "Nothing is left to gain")],
    ids=["at the start", "at the ceiling"],
)
def test_values_at_an_end_are_found(low, high, reason):
    draws = np.random.default_rng(5).uniform(low, high, size=(200, 2, 5))
    assert share(draws, lambda one: one is not None and one.reason.startswith(reason)) == 1


def test_a_training_that_ignores_its_seed_is_found():
    for plain, ours in np.random.default_rng(6).uniform(20, 80, size=(200, 2)):
        found = state([plain] * 5, [ours] * 5)
        assert (found.reason, found.step) == ("Each norm has one value for all seeds.", "broken")


def test_a_gain_has_the_sign_of_the_difference_in_any_unit():
    """Also of values that their unit does not have."""
    for plain, ours in np.random.default_rng(7).normal(20, 5, size=(12, 2, 5)):
        for unit in UNITS:
            found = compared({"BN": plain, "EN": ours}, unit_name=unit)
            text, difference = (
                answers(found, OWN_TEST)["EN"].text,
                found.differences[OWN_TEST]["EN"],
            )
            if found.verdicts[OWN_TEST]["EN"].word != "undecided":
                assert text.startswith("Gain: +" if difference.mean > 0 else "Loss: ")
