"""Segmenters of CamVid's daylight with standardized inputs, by folds of its sequences."""

import math
from collections.abc import Iterable
from statistics import mean

from ilm_plugins.experiments.compare.results import OWN_TEST
from ilm_plugins.experiments.reports.interval import one_sided
from ilm_plugins.experiments.reports.table import of_dicts

from .comparisons import Pair, corrected, difference_cells, mean_cell
from .daylight import MARGIN, REESTIMATED, TESTS
from .results import Results, by_seed

#: Fold, by the sequence that tests -> the comparison without standardized inputs.
FOLDS = {"0016E5": "folds-0016E5", "0006R0": "folds-0006R0"}
PLANNED = 6
#: Model -> end of its comparisons' names, and its norm.
MODELS = {
    "BN": ("", "BN"),
    "BN standardized": ("-standardized", "BN"),
    "EN": ("", "EN"),
    "EN standardized": ("-standardized", "EN"),
}
#: Question -> the plain model, the other one, the test, and whether equivalence stands beside it.
QUESTIONS = {
    "1. half the contrast": ("BN standardized", "EN", "contrast0.5", True),
    "2. by day": ("BN standardized", "EN standardized", OWN_TEST, True),
    "3. dusk": ("BN standardized", "EN standardized", "dusk", False),
}


def of_model(results: Results, model: str, test: str, folds: Iterable[str]) -> dict[int, float]:
    """Return seed -> mean mIoU over folds, of the seeds that all of them have."""
    end, norm = MODELS[model]
    found = [by_seed(results, FOLDS[fold] + end, norm, test) for fold in folds]
    seeds = set.intersection(*map(set, found))
    return {seed: mean(one[seed] for one in found) for seed in sorted(seeds)}


def complete(results: Results) -> set[int]:
    """Return the seeds of which all models have all tests, in both folds."""
    found = (of_model(results, model, test, FOLDS) for model in MODELS for test in TESTS.values())
    return set.intersection(*map(set, found))


def answers(results: Results) -> list[str]:
    """Return the table of the three questions, with each fold's difference beside them."""
    seeds = complete(results)

    def pair(models: Iterable[str], test: str, folds: Iterable[str]) -> Pair:
        values = (of_model(results, model, test, folds) for model in models)
        return Pair(*({s: one[s] for s in one.keys() & seeds} for one in values))

    found = []
    for question, (*models, test, has_margin) in QUESTIONS.items():
        both = pair(models, test, FOLDS)
        p = max(one_sided(both.ours, both.plain, MARGIN)) if has_margin else math.nan
        row = {"question": question, "models": f"{models[1]} - {models[0]}"}
        last = {}
        if len(seeds) > 1:  # one seed has no interval
            last[f"p, within {MARGIN}"] = "-" if math.isnan(p) else f"{p:.3f}"
        for fold in FOLDS:
            one = pair(models, test, [fold]).difference
            last[fold] = "-" if one is None else difference_cells(one)["difference"]
        found.append((row, last, both.difference))
    rows = []
    for row, last, difference in corrected(found):
        cells = {} if difference is None else difference_cells(difference)
        kept = ("difference", "95 % interval", "p, corrected")
        cells = {name: cells.get(name, "-") for name in (kept if len(seeds) > 1 else kept[:1])}
        rows.append(row | cells | last | {"seeds": f"{len(seeds)} of {PLANNED}"})
    return of_dicts(rows)


def means(results: Results) -> list[str]:
    """Return mean mIoU by model and kind of test images, over folds and complete seeds."""
    seeds = complete(results)
    rows = []
    for model, end in (*((model, "") for model in MODELS), ("BN", REESTIMATED)):
        row = {"model": f"{model}, test images' statistics" if end else model}
        for kind, test in TESTS.items():
            values = of_model(results, model, test + end, FOLDS)
            row[kind] = mean_cell([values[seed] for seed in values.keys() & seeds])
        rows.append(row)
    return of_dicts(rows)
