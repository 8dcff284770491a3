"""The rule that chooses learning rates, the order of the lines, and rows that are kept."""

import sys

import pytest

pytest.importorskip("mmengine", reason="needs OpenMMLab: make install-openmmlab")

from reproduction.corruptions import __main__, records, study

GRID = ((0.1, 0.2, 0.4), 2.0)
RECORD = {
    **{"run": 12, "planned": 12, "unit": "epochs", "seed": 30, "seconds": 10.04},
    **{"commit": "abc", "device": "CPU, AMD EPYC"},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "found, expected",
    [
        ({}, 0.1),
        ({0.1: 70.0, 0.2: 71.0}, 0.4),
        ({0.1: 70.0, 0.2: 71.0, 0.4: 69.0}, None),
        ({0.1: 72.0, 0.2: 71.0, 0.4: 69.0}, 0.05),
        ({0.05: 73.0, 0.1: 72.0, 0.2: 71.0, 0.4: 69.0}, 0.025),
        ({0.1: 70.0, 0.2: 71.0, 0.4: 72.0}, 0.8),
        ({0.1: 70.0, 0.2: 71.0, 0.4: 72.0, 0.8: 0.0}, None),
        ({0.1: 71.0, 0.2: 71.0, 0.4: 70.0}, 0.05),  # the smaller of two equally good ones
    ],
)
def test_rates_go_on_until_the_best_has_a_worse_one_on_each_side(found, expected):
    assert study.next_rate(found, *GRID) == expected


def test_a_grid_in_steps_of_three_has_short_numbers():
    assert study.next_rate({0.01: 3.0, 0.03: 2.0, 0.1: 1.0}, (0.01, 0.03, 0.1), 3.0) == 0.003


def made(comparison, arm, value, **record):
    tests = {"test": {"accuracy/top1": value}}
    found = records.rows(comparison, arm, RECORD | record, tests, study.JPEG)
    study.write(comparison, found)
    return found


def test_a_seed_gets_the_rate_that_is_best_for_its_arm():
    for rate, value in ((0.1, 70.0), (0.2, 72.5), (0.4, 71.0)):
        made(f"cifar-rate{rate:g}", "EN", value, seed=100)
        made(f"cifar-rate{rate:g}", "EN-AugMix", 80 - value, seed=100)
    assert study.chosen_rate("cifar", "EN") == 0.2


def test_all_arms_of_a_seed_are_before_the_next_and_rates_are_first():
    names = [name for name, _ in study.lines()]
    assert len(names) == len({*names}) == 5 + 30 + 3 + 36 + 1 + 16
    assert [name for name in names[5:15]] == [
        f"cifar-{seed}-{arm}" for seed in (30, 31) for arm in study.CIFAR
    ]
    assert all("rates" in name for name in names[:5])


def test_a_line_whose_rows_are_there_trains_nothing(monkeypatch):
    monkeypatch.delattr(study, "train")
    made("cifar", "EN", 80.0)
    assert study.has("cifar", "EN", 30) and not study.has("cifar", "BN", 30)
    dict(study.lines())["cifar-30-EN"]()


def test_committed_rows_stay_and_merging_again_changes_nothing(monkeypatch):
    (row,) = made("cifar", "EN", 80.0)
    assert row["value"] == "80.0" and row["trained"] == "12 of 12 epochs, on re-encoded JPEG"
    records.write(study.COMMITTED, study.known().values())
    made("cifar", "EN", 81.0)  # the same run again
    made("cifar", "BN", 79.0)
    study.RECORDS.rename("records of another checkout")
    monkeypatch.setattr(sys, "argv", ["reproduction", "merge", "records of another checkout"])
    made("cifar", "SN", 82.0)  # not in that folder
    text = None
    for _ in range(2):
        __main__.main()
        assert text in (None, text := study.COMMITTED.read_text())
    found = records.read([study.COMMITTED])
    assert {key[1]: row["value"] for key, row in found.items()} == {"EN": "80.0", "BN": "79.0"}
    assert '"CPU, AMD EPYC"' in text


def test_an_unknown_line_ends_with_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduction", "run", "cifar-30-GN"])
    with pytest.raises(SystemExit, match="'cifar-30-GN': no such line"):
        __main__.main()
