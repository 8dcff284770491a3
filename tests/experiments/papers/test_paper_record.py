"""Records of runs: their labels, and the records that are kept."""

from types import SimpleNamespace

import pytest

from ilm_plugins.experiments.papers import paper_record, published

RECIPE = {"length": 165, "batch": 128, "images": 50000, "test_images": 10000, "jpeg": False}
TRAINED = {
    **{"config": "seed0.py", "commit": "0123456789ab", "device": "CPU, Xeon", "seed": 0},
    **{"batch": 128, "images": 50000, "unit": "epochs", "planned": 165, "run": 165},
    **{"seconds": 3600.0, "curve": [{"epochs": 1, "loss": 2.0, "accuracy/top1": 40.0}]},
    **{"metrics": {"": {"accuracy/top1": 90.0}}, "test images": 10000},
}


def recorded(
    cell="en-5 ResNet20/EN", changes=(), parent=None, jpeg=False, miniature=False, **options
):
    """The record of a full recipe, less what ``options`` say."""
    found = {**TRAINED, **{key.replace("_", " "): value for key, value in options.items()}}
    recipe = SimpleNamespace(**{**RECIPE, "jpeg": jpeg})
    more = {"changes": dict(changes), "parent": parent, "miniature": miniature}
    return paper_record.complete(found, published.find_cell(cell), recipe, **more)


SHORT = {"planned": 9, "run": 9}
# Only a test: the length and the batch are no part of it.
TESTED = {"cell": "en-4 ImageNet -> WebVision/EN", "planned": 0, "batch": None, "images": None}


@pytest.mark.parametrize(
    "options, label",
    [
        ({}, "full recipe"),
        (SHORT, "shortened: 9 of 165 epochs"),
        ({"planned": 200, "run": 200}, "lengthened: 200 of 165 epochs"),
        ({"run": 40, "metrics": {}}, "unfinished: 40 of 165 epochs"),
        ({"run": 40, "stopped early": True}, "stopped early: 40 of 165 epochs"),
        ({"metrics": {}}, "no figure yet"),
        ({"cell": "en-6 backbone/EN"}, "full recipe"),  # without the figures of its table
        ({"batch": 64}, "batches of 64, not 128"),
        ({"images": 384}, "384 of 50000 images"),
        ({"test_images": 112}, "tested on 112 of 10000 images"),
        ({"changes": {"a.b": 1, "c": "d" * 50}}, f"changed: a.b=1, changed: c={'d' * 40}"),
        ({"miniature": True, "images": 16, "batch": 4}, "miniature"),
        ({"run": 40, "metrics": {}, "diverged": "NaN"}, "full recipe"),
        ({"parent": recorded(**SHORT)}, "from en-5 ResNet20/EN (shortened: 9 of 165 epochs)"),
        ({"parent": recorded(), **TESTED, "run": 0}, "full recipe"),
    ],
)
def test_whatever_differs_from_the_recipe_is_in_the_label(options, label):
    assert paper_record.label(recorded(**options)) == label
