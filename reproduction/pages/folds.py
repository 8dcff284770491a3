"""Segmenters of CamVid's daylight with standardized inputs, by folds of its sequences."""

from collections.abc import Iterable
from statistics import mean

from ilm_plugins.reports.interval import Difference, interval
from ilm_plugins.reports.table import of_dicts

from .comparisons import ALPHA, COLUMNS, Pair, corrected, mean_cell, tested
from .daylight import REESTIMATED, TESTS
from .results import OWN_TEST, Results, by_seed

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


def of_model(
    results: Results, model: str, test: str, folds: Iterable[str] = FOLDS
) -> dict[int, float]:
    """Return seed -> mean mIoU over folds, of the seeds that all of them have."""
    end, norm, test_end = MODELS[model]
    found = [by_seed(results, FOLDS[fold] + end, norm, test + test_end) for fold in folds]
    seeds = set.intersection(*map(set, found))
    return {seed: mean(one[seed] for one in found) for seed in sorted(seeds)}


def difference(
    results: Results, models: Iterable[str], test: str, folds: Iterable[str] = FOLDS
) -> Difference:
    """Return the difference of two models, the plain model first."""
    return Pair(*(of_model(results, model, test, folds) for model in models)).difference


def answers(results: Results) -> list[str]:
    """Return the table of the three questions, with each fold's difference and what follows."""
    found = []
    for question, (*models, test) in QUESTIONS.items():
        row = {"question": question, "models": f"{models[1]} - {models[0]}"}
        found.append((row, difference(results, models, test)))
    rows = tested(found, COLUMNS[:3])
    for row, (_, one), question in zip(rows, corrected(found), QUESTIONS.values(), strict=True):
        *models, test = question
        for fold in FOLDS:
            row[f"{fold} held out"] = interval(difference(results, models, test, [fold]))
        decided = f"keep {models[0]}" if one.mean < 0 else f"use {models[1]}"
        row["so"] = decided if one.p < ALPHA else "undecided"
    return of_dicts(rows)


def changes(results: Results) -> list[str]:
    """Return differences by kind of test images; by day for each fold, as they differ there."""
    rows = []
    for plain, ours in CHANGES:
        models = plain, ours
        row = {"models": f"{ours} - {f'({plain})' if ',' in plain else plain}"}
        for fold in FOLDS:
            row[f"day, {fold}"] = interval(difference(results, models, OWN_TEST, [fold]))
        for kind, test in TESTS.items():
            if test != OWN_TEST:
                row[kind] = interval(difference(results, models, test))
        rows.append(row)
    return of_dicts(rows)


def means(results: Results) -> list[str]:
    """Return mean mIoU by model and kind of test images, over the folds."""
    rows = []
    for model, kinds in by_contrast(results).items():
        rows.append({"model": model, **{kind: mean_cell(ones) for kind, ones in kinds.items()}})
    return of_dicts(rows)


def by_contrast(results: Results) -> dict[str, dict[str, list[float]]]:
    """Return model -> kind of test images -> mIoU of each seed over the folds."""
    return {
        model: {kind: [*of_model(results, model, test).values()] for kind, test in TESTS.items()}
        for model in MODELS
    }
