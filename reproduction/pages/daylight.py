"""Segmenters of CamVid's daylight on test images of several kinds, and of low contrast above all.

The differences on low contrast were found afterwards; fresh seeds answered questions on them.
"""

from collections.abc import Iterator
from dataclasses import replace

from ilm_plugins.reports.interval import ALPHA, Difference
from ilm_plugins.reports.table import markdown, of_dicts

from .comparisons import COLUMNS, Pair, corrected, difference_cells, mean_cell, pair, tested
from .results import OWN_TEST, Results, by_seed

#: Name of a test -> what its images are.
CONDITIONS = {
    OWN_TEST: "day",
    "dusk": "dusk",
    "gamma0.7": "darker, gamma .7",
    "gamma0.5": "darker, gamma .5",
    "contrast0.5": "half the contrast",
    "contrast0.25": "a quarter of the contrast",
    "noise0.05": "noise of .05",
    "noise0.1": "noise of .1",
    "blur1": "blur of 1 pixel",
    "blur2": "blur of 2 pixels",
}
#: Plain norm -> the norms that may replace it.
PAIRS = {"BN": ("EN", "EN-without-BN", "SN"), "GN": ("ILMGN",)}
#: Comparison with fresh seeds -> the distortion of contrast in its training.
FRESH = {"daylight-fresh": "usual", "daylight-strong": "strong"}
STRONG = "daylight-strong"
#: Kind of test images -> name of the test.
TESTS = {"day": OWN_TEST, "dusk": "dusk", "half": "contrast0.5", "a quarter": "contrast0.25"}
#: End of a test's name if the model has statistics of the test's images.
REESTIMATED = "-reestimated"
#: Points of mIoU within which norms count as equivalent.
MARGIN = 1.5
#: Question -> test of BN, test of EN, and whether the test is of equivalence.
QUESTIONS = {
    "1. half the contrast": ("contrast0.5", "contrast0.5", False),
    "2. by day, equivalent within 1.5": (OWN_TEST, OWN_TEST, True),
    "3. half, BN with the test images' statistics": (
        f"contrast0.5{REESTIMATED}",
        "contrast0.5",
        False,
    ),
    "3. a quarter, BN with the test images' statistics": (
        f"contrast0.25{REESTIMATED}",
        "contrast0.25",
        False,
    ),
}
#: Comparison -> (layer, plain norm) of differences on altered images, all untested but TESTED.
AFTERWARDS = {
    "daylight": [
        *((norm, "BN") for norm in ("EN", "EN-without-BN", "SN", "GN", "ILMGN")),
        ("ILMGN", "GN"),
    ],
    "daylight-converted": [("EN", "BN"), ("SN", "BN")],
}
TESTED = ("daylight", "ILMGN", "GN", "gamma0.5")


def conditions(results: Results, comparison: str) -> list[str]:
    """Return a table of mean mIoU: conditions by norms, each with its number of seeds."""
    norms = [norm for plain, others in PAIRS.items() for norm in (plain, *others)]
    norms = [norm for norm in norms if norm in results[comparison]]
    rows = [["seeds", *(str(len(by_seed(results, comparison, norm))) for norm in norms)]]
    for test, title in CONDITIONS.items():
        values = (by_seed(results, comparison, norm, test).values() for norm in norms)
        rows.append([title, *map(mean_cell, values)])
    return markdown(("mIoU", *(norm.replace("-", " ") for norm in norms)), rows)


def panels(results: Results) -> dict[str, list[tuple[str, Difference]]]:
    """Return pair of norms -> conditions, each with the difference."""
    return {
        f"{norm.replace('-', ' ')} - {plain}": [
            (title, pair(results, "daylight", (plain, norm), test).difference)
            for test, title in CONDITIONS.items()
        ]
        for plain, norms in PAIRS.items()
        for norm in norms
    }


def answers(results: Results) -> list[str]:
    """Return the table of the questions that were stated before the runs."""
    rows = []
    for question, (*tests, is_equivalence) in QUESTIONS.items():
        norms = zip(("BN", "EN"), tests, strict=True)
        values = Pair(*(by_seed(results, STRONG, norm, test) for norm, test in norms))
        row = {"question": question}
        row |= {norm: f"{m:.1f}" for norm, m in zip(("BN", "EN"), values.means, strict=True)}
        difference = values.difference
        if is_equivalence:
            difference = replace(difference, p=difference.p_within(MARGIN))
        rows.append((row, difference))
    return of_dicts(tested(rows, [name for name in COLUMNS if not name.startswith("power")]))


def means(results: Results) -> list[str]:
    """Return mean mIoU by distortion in training, norm and kind of test images."""
    rows = []
    for comparison, title in FRESH.items():
        for norm, end in (("BN", ""), ("BN", REESTIMATED), ("EN", "")):
            values = {
                kind: by_seed(results, comparison, norm, test + end).values()
                for kind, test in TESTS.items()
            }
            row = {"contrast in training": title}
            row["norm"] = f"{norm}, test images' statistics" if end else norm
            row["seeds"] = str(max(map(len, values.values())))
            rows.append(row | {kind: mean_cell(found) for kind, found in values.items()})
    return of_dicts(rows)


def afterwards(results: Results) -> list[str]:
    """Return the differences on altered images that are significant by Holm's rule over all."""
    rows = []
    for test, norms, difference in corrected([*_on_altered_images(results)]):
        if difference.p < ALPHA:
            p = f"{difference.p:.4f}" if difference.p >= 1e-4 else "< 0.0001"
            cells = difference_cells(difference) | {"p, corrected": p}
            row = {"test images": CONDITIONS[test], "norms": norms}
            rows.append(row | {name: cells[name] for name in COLUMNS[:3]})
    return of_dicts(rows)


def _on_altered_images(results: Results) -> Iterator[tuple[str, str, Difference]]:
    """Yield test, norms and difference of all pairs on altered images that were not tested."""
    for comparison, pairs in AFTERWARDS.items():
        start = ", converted" if comparison.endswith("converted") else ""
        for norm, plain in pairs:
            for test in CONDITIONS:
                if test in (OWN_TEST, "dusk") or (comparison, norm, plain, test) == TESTED:
                    continue
                difference = pair(results, comparison, (plain, norm), test).difference
                yield test, f"{norm.replace('-', ' ')} - {plain}{start}", difference
