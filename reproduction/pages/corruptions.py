"""Models on corrupted images, with standardized inputs or trained on from a BN model."""

from collections.abc import Iterable, Sequence
from statistics import mean

from ilm_plugins.reports.interval import interval, signed
from ilm_plugins.reports.table import markdown, of_dicts

from .comparisons import COLUMNS, Pair, mean_cell, tested
from .results import OWN_TEST, Results, by_seed

#: Study -> its metric and its planned number of seeds.
METRICS = {"cifar": "top-1", "camvid": "mIoU", "further": "mIoU"}
PLANNED = {"cifar": 6, "camvid": 6, "further": 8}
FOLDS = "0016E5", "0006R0"
#: Arm -> as the tables call it.
ARMS = {
    "cifar": {
        "BN": "BN",
        "EN": "EN",
        "SN": "SN",
        "BN-AugMix": "BN with AugMix",
        "EN-AugMix": "EN with AugMix",
    },
    "camvid": {"BN": "BN", "EN": "EN", "SN": "SN"},
    "further": {"BN": "BN", "EN": "EN", "SN": "SN", "BN-standardized": "BN standardized"},
}
#: Tested differences: the plain arm and the other one.
PAIRS = {
    "cifar": (("BN", "EN"), ("BN", "SN"), ("BN-AugMix", "EN"), ("BN-AugMix", "EN-AugMix")),
    "camvid": (("BN", "EN"), ("BN", "SN")),
    "further": (("BN", "EN"), ("BN", "SN"), ("BN", "BN-standardized")),
}
#: Test on CIFAR-10 -> as the tables call it.
CORRUPTIONS = {
    "gaussian_noise": "Gaussian noise",
    "shot_noise": "shot noise",
    "impulse_noise": "impulse noise",
    "defocus_blur": "defocus blur",
    "glass_blur": "glass blur",
    "motion_blur": "motion blur",
    "zoom_blur": "zoom blur",
    "snow": "snow",
    "fog": "fog",
    "brightness": "brightness",
    "contrast": "contrast",
    "elastic": "elastic",
    "pixelate": "pixelate",
    "jpeg": "JPEG",
}
#: Suffix of a test with the statistics of test images -> its name in the tables.
BATCHES = {f"-batch{size}": f"statistics of {size}" for size in (200, 16, 1)}
CHANGES = {
    "noise0.1": "noise of .1",
    "blur2": "blur of 2 pixels",
    "gamma0.5": "gamma .5",
    "jpeg15": "JPEG of quality 15",
}
#: Test on CamVid -> as the tables call it.
CAMVID = {
    OWN_TEST: "day",
    **{name: f"day, {title}" for name, title in CHANGES.items()},
    "dusk": "dusk",
    **{f"dusk-{name}": f"dusk, {title}" for name, title in CHANGES.items()},
}
HALF = "contrast0.5"
CORRUPTED = {
    "cifar": (*CORRUPTIONS,),
    "camvid": (*(name for name in CAMVID if name not in (OWN_TEST, "dusk")),),
}
CORRUPTED["further"] = CORRUPTED["camvid"]
#: Question -> its tests, of a study with more than one.
QUESTIONS = {
    "by day": (OWN_TEST,),
    "half the contrast": (HALF,),
    "at dusk": ("dusk",),
    "corrupted": CORRUPTED["camvid"],
}


def values(results: Results, study: str, arm: str, tests: Iterable[str]) -> dict[int, float]:
    """Return seed -> mean over tests, and over the folds, of the seeds that have them all."""
    comparisons = [study] if study == "cifar" else [f"{study}-{fold}" for fold in FOLDS]
    found = [
        by_seed(results, comparison, arm, test, METRICS[study])
        for comparison in comparisons
        for test in tests
    ]
    seeds = set.intersection(*map(set, found))
    return {seed: mean(one[seed] for one in found) for seed in sorted(seeds)}


def complete(results: Results, study: str) -> list[int]:
    """Return the seeds with all arms and tests."""
    tests = (OWN_TEST, *CORRUPTED[study])
    return sorted(set.intersection(*(set(values(results, study, a, tests)) for a in ARMS[study])))


def pair(results: Results, study: str, arms: Sequence[str], tests: Iterable[str]) -> Pair:
    """Return the plain arm's values and the other one's, of the complete seeds."""
    seeds = complete(results, study)
    found = (values(results, study, arm, tests) for arm in arms)
    return Pair(*({seed: one[seed] for seed in seeds} for one in found))


def name_of(study: str, arms: Sequence[str]) -> str:
    plain, ours = (ARMS[study][arm] for arm in arms)
    return f"{ours} - {plain}"


def answers(results: Results, study: str) -> list[str]:
    """Return the table of the planned tests, each with the difference on unaltered images."""
    seeds, planned = len(complete(results, study)), PLANNED[study]
    if not seeds:
        return [f"No seed has all models yet (0 of {planned})."]
    questions = QUESTIONS if study == "further" else {"": CORRUPTED[study]}
    rows, found = [], []
    for question, tests in questions.items():
        for arms in PAIRS[study]:
            one = pair(results, study, arms, tests)
            row = {"test images": question} if question else {}
            plain, ours = (f"{m:.1f}" for m in one.means)
            rows.append(row | {"models": name_of(study, arms), "means": f"{ours}, {plain}"})
            found.append(one.difference)
    is_done = seeds == planned  # nothing is tested before
    pairs = [*zip(rows, found, strict=True)]
    rows = tested(pairs, COLUMNS[:3] if is_done else COLUMNS[:1])
    if study != "further":
        beside = {OWN_TEST: "clean" if study == "cifar" else "day"}
        beside |= {} if study == "cifar" else {"dusk": "dusk"}
        for row, arms in zip(rows, PAIRS[study], strict=True):
            for test, title in beside.items():
                one = pair(results, study, arms, [test]).difference
                row[f"{title}, unaltered"] = interval(one) if is_done else signed(one.mean)
    return [*of_dicts(rows), "", f"{seeds} of {planned} seeds."]


def kinds(results: Results, study: str) -> list[str]:
    """Return means of the complete seeds: kinds of test images by arms, BN's statistics last."""
    seeds = complete(results, study)
    if not seeds:
        return [f"No seed has all models yet (0 of {PLANNED[study]})."]
    titles = {OWN_TEST: "clean", **CORRUPTIONS} if study == "cifar" else CAMVID
    if study == "further":
        titles = titles | {HALF: "day, half the contrast"}
    rows = {title: [test] for test, title in titles.items()}
    rows["mean, corrupted"] = [*CORRUPTED[study]]
    found = {title: by_model(results, study, tests) for title, tests in rows.items()}
    cells = [[title, *map(mean_cell, models.values())] for title, models in found.items()]
    return markdown((METRICS[study], *found["mean, corrupted"]), cells)


def by_model(results: Results, study: str, tests: Sequence[str]) -> dict[str, list[float]]:
    """Return model -> mean over tests by complete seed; BN with test statistics comes last."""
    models = {title: (arm, "") for arm, title in ARMS[study].items()}
    if study == "cifar":
        for arm in ("BN", "BN-AugMix"):
            models |= {f"{ARMS[study][arm]}, {title}": (arm, end) for end, title in BATCHES.items()}
    seeds, found = complete(results, study), {}
    for title, (arm, end) in models.items():
        one = values(results, study, arm, [test + end for test in tests])
        found[title] = [one[seed] for seed in seeds if seed in one]
    return found
