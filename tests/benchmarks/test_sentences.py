"""The numbers in the pages' sentences on speed are those of the committed records."""

import json
from itertools import chain
from pathlib import Path
from statistics import geometric_mean

import pytest

ROOT = Path(__file__).parents[2]
CPU, GPU = (
    json.loads((ROOT / "benchmarks" / name).read_text())
    for name in ("record.json", "record_gpu.json")
)
#: Pages.
README, PERFORMANCE = "README.md", "docs/performance.md"
STEPS = GPU["steps"]


def milliseconds(way, norm):
    return f"{1000 * STEPS[way][norm]['seconds']:.1f}"


def step(way, norm):
    """Return the time of a layer's training step on the GPU over the plain norm's."""
    plain = "GN" if norm == "ILMGN" else "BN"
    return f"{STEPS[way][norm]['seconds'] / STEPS[way][plain]['seconds']:.2f}"


def modes(norm):
    return "{}, {} or {}".format(*(step(way, norm) for way in ("eager", "compiled", "graph")))


def peak(norm):
    return f"{STEPS['eager'][norm]['peak bytes'] / 2**30:.1f}"


def rows(record, layers, setting=None, shape=None):
    """Return a record's rows of layers, of one setting or of all, on one map or on all."""
    settings = [setting] if setting else record["layers"]
    return [
        row
        for row in chain.from_iterable(record["layers"][name] for name in settings)
        if row["layer"] in layers and shape in (None, row["shape name"])
    ]


def over_plain(measured, times="both"):
    """Return each row's time over the plain norm's."""
    return [row[times]["over baseline"][0] for row in measured]


def one(*words, times="both"):
    (ratio,) = over_plain(rows(*words), times)
    return f"{ratio:.2f}"


def between(numbers, digits=1):
    return f"{min(numbers):.{digits}f} to {max(numbers):.{digits}f}"


def model_steps():
    measured = CPU["models"]
    return [row["over baseline"][0] for row in measured if row["model"][:4] in ("Mask", "ResN")]


def means(setting):
    """Return each layer's geometric mean over the maps."""
    layers = {row["layer"] for row in CPU["layers"][setting]}
    return [geometric_mean(over_plain(rows(CPU, [layer], setting))) for layer in layers]


def fused_steps():
    measured = [row for row in CPU["models"] if row["norm"].endswith("fused")]
    return [f"{row['over baseline'][0]:.2f}" for row in measured]


def over_pairs():
    """Return the geometric means over the maps of a layer with its activation over the pair."""
    ratios = {}
    for setting, measured in CPU["activations"].items():
        for row in measured:
            key = setting, row["layer"], row["activation"]
            ratios.setdefault(key, []).append(row["both"]["over baseline"][0])
    return list(map(geometric_mean, ratios.values()))


def over_eager():
    return [1 / row[times]["over compiled"][0] for row in CPU["compiled"] for times in PASSES]


PASSES = "forward", "both"
LAYERS = ["ILMGN", "AN", "EN", "SN"]
MAPS = rows(GPU, LAYERS)
PLAIN_TORCH = between(means("without C"))

SENTENCES = [
    (README, f"Mask R-CNN or ResNet-50 takes {between(model_steps(), 2)} of BatchNorm's"),
    (
        README,
        f"takes {modes('EN')} (EN), {modes('SN')} (SN) of BatchNorm's time, "
        f"{modes('ILMGN')} (ILMGN) of GroupNorm's",
    ),
    (
        README,
        f"Compiled GroupNorm ({milliseconds('compiled', 'GN')} ms) is faster than eager ILMGN "
        f"({milliseconds('eager', 'ILMGN')} ms)",
    ),
    (README, f"a layer takes {PLAIN_TORCH} times BatchNorm's or GroupNorm's time"),
    (
        PERFORMANCE,
        f"AN takes {one(CPU, ['AN'], 'float32', 'res5')} times GroupNorm's time there, in bfloat16 "
        f"{one(CPU, ['AN'], 'bfloat16', 'res5')} times, and ILMGN "
        f"{one(CPU, ['ILMGN'], 'float32', 'res5')} and {one(CPU, ['ILMGN'], 'bfloat16', 'res5')}",
    ),
    (PERFORMANCE, f"where EN takes {one(CPU, ['EN'], 'channels last', 'box head')} times"),
    (PERFORMANCE, f"the layers on average take {between(means('float32'), 2)} of the time"),
    (PERFORMANCE, f"Both together take {between(over_pairs(), 2)} of the time"),
    (PERFORMANCE, "takes {} (ILMGN) and {} (EN) of the time with".format(*fused_steps())),
    (PERFORMANCE, f"A compiled layer alone takes {between(over_eager(), 2)} times as long"),
    (PERFORMANCE, f"Mask R-CNN or ResNet-50 takes {between(model_steps(), 2)} times as long"),
    (PERFORMANCE, f"Forward and backward take {PLAIN_TORCH} times BatchNorm's or GroupNorm's"),
    (
        PERFORMANCE,
        f"a compiled step took {milliseconds('compiled', 'GN')} ms with GroupNorm, an eager step "
        f"{milliseconds('eager', 'ILMGN')} ms with ILMGN and {milliseconds('eager', 'GN')} ms with",
    ),
    (
        PERFORMANCE,
        f"ILMGN took {step('eager', 'ILMGN')} of GroupNorm's time in this one step, and "
        f"{peak('ILMGN')} GiB in place of {peak('GN')}",
    ),
    (
        PERFORMANCE,
        f"longer in eager steps ({step('eager', 'EN')} and {step('eager', 'SN')}) and compiled "
        f"({step('compiled', 'EN')} and {step('compiled', 'SN')})",
    ),
    (PERFORMANCE, f"which took {step('graph', 'EN')} and {step('graph', 'SN')} of BatchNorm's"),
    (PERFORMANCE, f"a step with ILMGN took {milliseconds('compiled', 'ILMGN')} ms, all of it the"),
    (
        PERFORMANCE,
        f"ILMGN took {one(GPU, ['ILMGN'], 'float32', 'res5', times='both, graph')} and AN "
        f"{one(GPU, ['AN'], 'float32', 'res5', times='both, graph')} times GroupNorm's",
    ),
]


@pytest.mark.parametrize("page, sentence", SENTENCES)
def test_a_sentence_has_the_numbers_of_the_records(page, sentence):
    assert sentence in " ".join((ROOT / page).read_text("utf-8").split())


def test_an_eager_layer_is_slower_than_the_plain_norm_on_every_map_as_the_pages_say():
    assert min(over_plain(MAPS)) > 1


def test_a_compiled_step_waits_for_the_host_as_the_page_says():
    times = STEPS["compiled"]["ILMGN"]
    assert times["host seconds"] >= times["seconds"]
