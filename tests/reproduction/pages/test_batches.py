"""The table of detectors by images a step, from made-up values."""

import scipy.stats

from reproduction.pages.batches import markdown

BN, EN = {0: 50.0, 1: 52.0, 2: 51.0}, {0: 51.0, 1: 52.5, 2: 53.0}


NORMS = {"BN": BN, "EN": EN, "GN": BN, "ILMGN": EN}


def cells(batches, images):
    lines = [line.strip("| ").split(" | ") for line in markdown(batches)]
    return dict(zip(lines[0], next(row for row in lines if row[0] == str(images)), strict=True))


def test_a_norm_has_its_mean_deviation_and_number_of_seeds():
    assert cells({1: NORMS}, 1)["BN"] == "51.0 ± 1.0 (3)"


def test_the_difference_is_paired_by_seed():
    low, high = scipy.stats.ttest_rel([*EN.values()], [*BN.values()]).confidence_interval()
    found = cells({1: NORMS}, 1)["EN - BN"]
    assert found == f"+1.2 [{low:+.1f}, {high:+.1f}]"


def test_the_smallest_batch_is_first():
    lines = markdown({4: NORMS, 1: NORMS, 2: NORMS})[2:]
    assert [line.split()[1] for line in lines] == ["1", "2", "4"]
