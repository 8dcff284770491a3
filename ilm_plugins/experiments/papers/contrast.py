"""Tables on low contrast: differences found afterwards, and answers of the fresh seeds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

from ..compare.results import OWN_TEST
from ..compare.statistics import ALPHA, Difference, holm, paired, signed
from .conditions import CONDITIONS, METRIC
from .paper_report import markdown_head, markdown_row
from .questions import by_seed, ends

#: Comparison with fresh seeds -> the distortion of contrast in its training.
COMPARISONS = {"daylight-fresh": "usual", "daylight-strong": "strong"}
STRONG = "daylight-strong"
#: Kind of test images -> name of the test.
TESTS = {"day": OWN_TEST, "dusk": "dusk", "half": "contrast0.5", "a quarter": "contrast0.25"}
#: End of a test's name if the model has statistics of the test's images.
REESTIMATED = "-reestimated"
#: Points of mIoU within which norms count as equivalent.
MARGIN = 1.5
#: Question -> test of EN, test of BN, and whether the test is of equivalence.
QUESTIONS = {
    "1. half the contrast": ("contrast0.5", "contrast0.5", False),
    "2. by day, equivalent within 1.5": (OWN_TEST, OWN_TEST, True),
    "3. half, BN, test images' statistics": ("contrast0.5", f"contrast0.5{REESTIMATED}", False),
    "3. a quarter, BN, test images' statistics": (
        "contrast0.25",
        f"contrast0.25{REESTIMATED}",
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


def answers(folder: Path) -> str:
    """Return the table of the questions that were stated before the runs."""
    found = []
    for en_test, bn_test, is_equivalence in QUESTIONS.values():
        en = by_seed(folder / STRONG / "EN", en_test, METRIC)
        bn = by_seed(folder / STRONG / "BN", bn_test, METRIC)
        difference = paired(en, bn)
        if is_equivalence and difference is not None and difference.has_interval:
            difference = replace(difference, p=difference.p_of_equivalence(MARGIN))
        found.append((en, bn, difference))
    corrected = holm([difference for *_, difference in found])
    columns = "question", "BN", "EN", "EN - BN", "95 % interval", "p, corrected", "not excluded"
    lines = markdown_head(*columns, "seeds")
    for question, (en, bn, _), difference in zip(QUESTIONS, found, corrected, strict=True):
        if difference is None:
            lines.append(markdown_row(question, *"-" * 6, "0"))
            continue
        common = en.keys() & bn.keys()
        means = (f"{mean(v[seed] for seed in common):.1f}" for v in (bn, en))
        cells = ["-"] * 3
        if difference.has_interval:
            interval = ends(difference.low, difference.high)
            cells = [interval, f"{difference.p:.3f}", ends(*difference.left)]
        shown = signed(difference.mean), *cells, str(difference.seeds)
        lines.append(markdown_row(question, *means, *shown))
    return "\n".join(lines)


def means(folder: Path) -> str:
    """Return mean mIoU by distortion in training, norm and kind of test images."""
    lines = markdown_head("contrast in training", "norm", "seeds", *TESTS)
    for comparison, title in COMPARISONS.items():
        for norm, end in (("BN", ""), ("BN", REESTIMATED), ("EN", "")):
            values = [
                by_seed(folder / comparison / norm, test + end, METRIC).values()
                for test in TESTS.values()
            ]
            name = f"{norm}, test images' statistics" if end else norm
            cells = (f"{mean(v):.1f}" if v else "-" for v in values)
            lines.append(markdown_row(title, name, str(max(map(len, values))), *cells))
    return "\n".join(lines)


def afterwards(folder: Path) -> str:
    """Return the differences on altered images that are significant by Holm's rule over all."""
    compared = list(_on_altered_images(folder))
    corrected = holm([difference for *_, difference in compared])
    lines = markdown_head("test images", "norms", "difference", "95 % interval", "p, corrected")
    for (test, norms, _), difference in zip(compared, corrected, strict=True):
        if difference is not None and difference.p < ALPHA:
            interval = ends(difference.low, difference.high)
            p = f"{difference.p:.4f}" if difference.p >= 1e-4 else "< 0.0001"
            cells = signed(difference.mean), interval, p
            lines.append(markdown_row(CONDITIONS[test], norms, *cells))
    return "\n".join(lines)


def _on_altered_images(folder: Path) -> Iterator[tuple[str, str, Difference | None]]:
    """Yield test, norms and difference of all pairs on altered images that were not tested."""
    for comparison, pairs in AFTERWARDS.items():
        start = ", converted" if comparison.endswith("converted") else ""
        for norm, plain in pairs:
            for test in CONDITIONS:
                if test in (OWN_TEST, "dusk") or (comparison, norm, plain, test) == TESTED:
                    continue
                ours, theirs = (
                    by_seed(folder / comparison / name, test, METRIC) for name in (norm, plain)
                )
                yield test, f"{norm.replace('-', ' ')} - {plain}{start}", paired(ours, theirs)
