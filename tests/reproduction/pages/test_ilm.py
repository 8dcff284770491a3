"""The tables of ILM and the norms that it builds on, from made-up results."""

from collections import defaultdict

import pytest

from reproduction.pages import ilm
from reproduction.pages.results import Run


def results(seeds, without=()):
    """Each ILM form is 1 above its norm on average, with a spread by seed; BN has 90."""
    found = defaultdict(lambda: defaultdict(list))
    for place, arm in enumerate(ilm.ARMS):
        for seed in seeds:
            if (arm, seed) in without:
                continue
            is_ilm = arm.startswith("ILM")
            gain = 1 + 1.5 * (seed % 3 - 1) if is_ilm else 0
            run = Run(seed)
            top1 = 90 if arm == "BN" else 70 + place // 2 + gain
            run.values["test"] |= {"top-1": top1, "training loss": 0.5 - 0.1 * is_ilm}
            found["ilm"][arm].append(run)
        step = Run(None)
        step.values["test"][ilm.STEP] = 0.2 if is_ilm else 0.1
        found["ilm"][arm].append(step)
    return found


def test_answers_have_the_complete_seeds_alone():
    lines = ilm.answers(results(range(20, 24), without={("BN", 23)}))
    assert "| GN 70.0 | ILMGN 71.0 | +1.0 |" in lines[2]
    assert "| 0.500 -> 0.400 | 2.00 |" in lines[2]
    assert lines[-1] == "3 of 6 seeds. BN, not tested: 90.0."


def test_without_a_complete_seed_no_row_is_shown():
    assert ilm.answers(results([20], without={("ILMLN", 20)})) == [
        "No seed has all models yet (0 of 6)."
    ]


def test_nothing_is_tested_before_all_planned_seeds_are_there():
    heads = [ilm.answers(results(range(20, 20 + number)))[0] for number in (1, 5, 6)]
    assert ["p, corrected" in head for head in heads] == [False, False, True]


def test_p_is_corrected_for_three_tests():
    lines = ilm.answers(results(range(20, 26)))
    alone = ilm.Pair(*(ilm.values(results(range(20, 26)), n) for n in ("GN", "ILMGN"))).difference
    shown = [float(line.split("|")[5]) for line in lines[2:5]]
    assert 0.1 < alone.p < 0.2
    assert shown == pytest.approx([3 * alone.p] * 3, abs=5e-4)


def test_each_seed_is_a_point():
    axis = ilm.points(results(range(20, 26))).axes[0]
    assert sum(len(line.get_ydata()) for line in axis.lines) == 7 * 6
