"""The tables of tests on corrupted images, from made-up results."""

import pytest
import scipy.stats

from helpers.made_up_results import run
from reproduction.pages import corruptions, plots
from reproduction.pages.comparisons import rates

GAINS = {"BN": 0, "EN": 2, "SN": 1, "BN-AugMix": 1.5, "EN-AugMix": 3, "BN-standardized": 0.5}


def results(study, seeds, without=(), tests=None):
    """Each arm has its gain on average over seeds, and no gain on clean images."""
    made = {}
    folds = [study] if study == "cifar" else [f"{study}-{fold}" for fold in corruptions.FOLDS]
    names = tests or (*corruptions.CORRUPTED[study], "test", "dusk", corruptions.HALF)
    for place, comparison in enumerate(folds):
        for arm in corruptions.ARMS[study]:
            for seed in seeds:
                if (arm, seed) in without:
                    continue
                gain = GAINS[arm] * (1 + (seed % 2 - 0.5))
                for test in names:
                    value = 60 + 4 * place + (0 if test == "test" else gain)
                    run(made, comparison, arm, seed, {corruptions.METRICS[study]: value}, test)
                    if arm in ("BN", "BN-AugMix") and study == "cifar":
                        for end, more in zip(corruptions.BATCHES, (5, 4, -30), strict=True):
                            run(made, comparison, arm, seed, {"top-1": value + more}, test + end)
    return made


def table(lines):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


@pytest.mark.parametrize("study, seeds", [("cifar", 6), ("camvid", 6), ("further", 8)])
def test_nothing_is_tested_before_all_planned_seeds_are_there(study, seeds):
    for number in (1, seeds - 1, seeds):
        lines = corruptions.answers(results(study, range(number)), study)
        assert ("p, corrected" in lines[0]) == (number == seeds)
        assert (" to " in "".join(lines)) == (number == seeds)
        assert lines[-1] == f"{number} of {seeds} seeds."


def test_a_seed_without_all_arms_does_not_count():
    lines = corruptions.answers(results("cifar", range(3), without={("SN", 1)}), "cifar")
    assert lines[-1] == "2 of 6 seeds."
    assert corruptions.answers({}, "cifar") == ["No seed has all models yet (0 of 6)."]
    assert corruptions.kinds({}, "camvid") == ["No seed has all models yet (0 of 6)."]


def test_the_tests_are_of_the_mean_over_all_corruptions_and_corrected_for_four():
    made = results("cifar", range(6))
    rows = {row["models"]: row for row in table(corruptions.answers(made, "cifar"))}
    assert [*rows] == [
        *("EN - BN", "SN - BN", "EN - BN with AugMix", "EN with AugMix - BN with AugMix")
    ]
    assert rows["EN - BN"]["difference"] == "+2.0"
    assert rows["EN - BN"]["clean, unaltered"] == "+0.0"
    differences = [1 + (seed % 2 - 0.5) for seed in range(6)]
    p = scipy.stats.ttest_1samp(differences, 0).pvalue  # the same for each pair
    assert float(rows["SN - BN"]["p, corrected"]) == pytest.approx(min(1, 4 * p), abs=5e-4)


def test_a_missing_corruption_leaves_the_seed_out():
    tests = (*corruptions.CORRUPTED["cifar"][1:], "test")
    lines = corruptions.answers(results("cifar", range(2), tests=tests), "cifar")
    assert lines == ["No seed has all models yet (0 of 6)."]


def test_a_value_on_camvid_is_the_mean_over_both_folds():
    made = results("camvid", range(2))
    assert corruptions.values(made, "camvid", "BN", ["test"]) == {0: 62.0, 1: 62.0}


def test_the_kinds_have_bn_with_statistics_of_test_images_beside_the_arms():
    rows = table(corruptions.kinds(results("cifar", range(2)), "cifar"))
    assert len(rows) == 1 + 14 + 1
    assert rows[0]["top-1"] == "clean" and rows[-1]["top-1"] == "mean, corrupted"
    found = [rows[-1][f"BN, statistics of {size}"] for size in (200, 16, 1)]
    assert found == ["65.0", "64.0", "30.0"]
    found = [rows[-1][f"BN with AugMix, statistics of {size}"] for size in (200, 16, 1)]
    assert found == ["66.5", "65.5", "31.5"]


def test_the_corruptions_are_those_that_models_are_tested_on():
    pytest.importorskip("cv2", reason="needs OpenCV: make install-openmmlab")
    from reproduction.corruptions.corruptions import CORRUPTIONS

    assert [*corruptions.CORRUPTIONS] == [*CORRUPTIONS]


def test_the_models_trained_on_have_four_questions_each():
    rows = table(corruptions.answers(results("further", range(8)), "further"))
    assert len(rows) == 12
    assert [row["models"] for row in rows[:3]] == ["EN - BN", "SN - BN", "BN standardized - BN"]
    assert [row["difference"] for row in rows[9:]] == ["+2.0", "+1.0", "+0.5"]


def test_a_table_of_rates_without_a_run_says_so():
    assert rates({}, "cifar", "top-1") == ["No run has ended yet."]


def test_the_plot_has_means_of_all_models_but_those_with_the_statistics_of_one_image():
    made, tests = results("cifar", range(6)), (corruptions.CORRUPTED["cifar"], ["test"])
    models, clean = (corruptions.by_model(made, "cifar", names) for names in tests)
    (axis,) = plots.corrupted(models, clean).axes
    means = [(60 + gain, 60) for gain in (0, 2, 1, 1.5, 3)]
    means += [(65, 65), (64, 64), (66.5, 65), (65.5, 64)]
    assert [line.get_xdata()[0] for line in axis.lines] == pytest.approx([*sum(means, ())])
    assert len(axis.get_yticklabels()) == len(means)
