"""Segmenters of CamVid's daylight with standardized inputs, by folds of its sequences."""

from collections.abc import Iterable
from statistics import mean

from ilm_plugins.experiments.compare.results import OWN_TEST
from ilm_plugins.experiments.reports.interval import Difference, interval
from ilm_plugins.experiments.reports.table import of_dicts

from .comparisons import Pair, corrected, difference_cells, mean_cell
from .daylight import REESTIMATED, TESTS
from .results import Results, by_seed

#: Fold, by the sequence that does not train -> the comparison without standardized inputs.
FOLDS = {"0016E5": "folds-0016E5", "0006R0": "folds-0006R0"}
ADAPTED = "BN, test images' statistics"
#: Model -> end of its comparisons' names, its norm, and end of its tests' names.
MODELS = {
    "BN": ("", "BN", ""),
    "BN standardized": ("-standardized", "BN", ""),
    "EN": ("", "EN", ""),
    "EN standardized": ("-standardized", "EN", ""),
    ADAPTED: ("", "BN", REESTIMATED),
}
#: Question -> the plain model, the other one, and the test.
QUESTIONS = {
    "1. half the contrast": ("BN standardized", "EN", "contrast0.5"),
    "2. by day": ("BN standardized", "EN standardized", OWN_TEST),
    "3. dusk": ("BN standardized", "EN standardized", "dusk"),
}
#: The plain model and the other one, of differences that are description.
CHANGES = (
    ("BN", "BN standardized"),
    ("BN", ADAPTED),
    ("BN", "EN"),
    (ADAPTED, "EN"),
)


def of_model(results: Results, model: str, test: str, folds: Iterable[str]) -> dict[int, float]:
    """Return seed -> mean mIoU over folds, of the seeds that all of them have."""
    end, norm, test_end = MODELS[model]
    found = [by_seed(results, FOLDS[fold] + end, norm, test + test_end) for fold in folds]
    seeds = set.intersection(*map(set, found))
    return {seed: mean(one[seed] for one in found) for seed in sorted(seeds)}


def complete(results: Results) -> set[int]:
    """Return the seeds of which all models have all tests, in both folds."""
    found = (of_model(results, model, test, FOLDS) for model in MODELS for test in TESTS.values())
    return set.intersection(*map(set, found))


def compared(
    results: Results, models: Iterable[str], test: str, folds: Iterable[str] = FOLDS
) -> Pair:
    """Return the values of two models over the complete seeds, the plain model first."""
    seeds = complete(results)
    values = (of_model(results, model, test, folds) for model in models)
    return Pair(*({seed: one[seed] for seed in one.keys() & seeds} for one in values))


def answers(results: Results) -> list[str]:
    """Return the table of the three questions, with each fold's difference beside them."""
    found = []
    for question, (*models, test) in QUESTIONS.items():
        row = {"question": question, "models": f"{models[1]} - {models[0]}"}
        of_folds = {
            f"{fold} held out": cell(compared(results, models, test, [fold]).difference)
            for fold in FOLDS
        }
        found.append((row, of_folds, compared(results, models, test).difference))
    rows = []
    for row, of_folds, difference in corrected(found):
        cells = difference_cells(difference)
        kept = {name: cells[name] for name in ("difference", "95 % interval", "p, corrected")}
        rows.append(row | kept | of_folds)
    return of_dicts(rows)


def cell(difference: Difference | None) -> str:
    """Return a difference with its interval as a cell of a table."""
    return "-" if difference is None else interval(difference)


def changes(results: Results) -> list[str]:
    """Return differences by kind of test images; by day for each fold, as they differ there."""
    rows = []
    for plain, ours in CHANGES:
        row = {"models": f"{ours} - {f'({plain})' if ',' in plain else plain}"}
        for fold in FOLDS:
            one = compared(results, (plain, ours), OWN_TEST, [fold])
            row[f"day, {fold}"] = cell(one.difference)
        for kind, test in TESTS.items():
            if test != OWN_TEST:
                row[kind] = cell(compared(results, (plain, ours), test).difference)
        rows.append(row)
    return of_dicts(rows)


def means(results: Results) -> list[str]:
    """Return mean mIoU by model and kind of test images, over folds and complete seeds."""
    rows = []
    for model, kinds in by_contrast(results).items():
        rows.append({"model": model, **{kind: mean_cell(ones) for kind, ones in kinds.items()}})
    return of_dicts(rows)


def by_contrast(results: Results) -> dict[str, dict[str, list[float]]]:
    """Return model -> kind of test images -> mIoU of the complete seeds, each over the folds."""
    seeds = sorted(complete(results))
    found = {}
    for model in MODELS:
        values = {kind: of_model(results, model, test, FOLDS) for kind, test in TESTS.items()}
        found[model] = {kind: [one[seed] for seed in seeds] for kind, one in values.items()}
    return found
