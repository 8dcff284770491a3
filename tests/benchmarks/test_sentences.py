"""The numbers in the pages' sentences on speed are those of the committed records."""

import json
from itertools import chain
from pathlib import Path
from statistics import geometric_mean

import pytest

ROOT = Path(__file__).parents[2]
CPU, ACTIVATIONS, GPU = (
    json.loads((ROOT / "benchmarks" / f"record{name}.json").read_text())
    for name in ("", "_activations", "_gpu")
)
#: Pages.
README, PERFORMANCE, BENCHMARKS = "README.md", "docs/performance.md", "benchmarks/README.md"
STEPS, CALLS = GPU["steps"], GPU["host"]["microseconds"]
LATER = {norm: f"{size / 1e9:.1f}" for norm, size in GPU["later peak"]["peak bytes"].items()}


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
    measured = [*CPU["models"], *ACTIVATIONS["models"]]
    return [row["over baseline"][0] for row in measured if row["model"][:4] in ("Mask", "ResN")]


def fused(norm):
    (row,) = (row for row in ACTIVATIONS["models"] if row["norm"] == f"{norm}, fused")
    memory = row["peak bytes"][row["norm"]] / row["peak bytes"][norm]
    return f"{row['over baseline'][0]:.2f}", f"{memory:.2f}"


def activated_means():
    groups = {}
    for setting, measured in ACTIVATIONS["activations"].items():
        for row in measured:
            key = setting, row["layer"], row["activation"]
            groups.setdefault(key, []).append(row["both"]["over baseline"][0])
    return [geometric_mean(ratios) for ratios in groups.values()]


def without_c(ratio):
    layers = {row["layer"] for row in CPU["layers"]["without C"]}
    return [geometric_mean(map(ratio, rows(CPU, [layer], "without C"))) for layer in layers]


def memory(row):
    return row["peak bytes"]["this"] / row["peak bytes"]["baseline"]


LAYERS = ["ILMGN", "AN", "EN", "SN"]
MAPS = rows(GPU, LAYERS)
WAITING = [100 * (1 - row["both, graph"]["seconds"] / row["both"]["seconds"]) for row in MAPS]
ILMGN = rows(GPU, ["ILMGN"])
AS_GRAPHS = over_plain(ILMGN, "both, graph")
BOX_HEAD = over_plain(rows(GPU, ["EN", "SN"], shape="box head"), "both, graph")
COMPILED = [1 / row[p]["over compiled"][0] for row in CPU["compiled"] for p in ("forward", "both")]
OVER_GN = [CALLS["a9e7d192"][norm] / CALLS["a9e7d192"]["GN"] for norm in (*LAYERS, "SSN")]
EARLIER = {norm: CALLS["0cde5347"][norm] / CALLS["0cde5347"]["GN"] for norm in LAYERS}
PLAIN_TORCH = between(without_c(lambda row: row["both"]["over baseline"][0]))

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
    (PERFORMANCE, f"Mask R-CNN or ResNet-50 takes {between(model_steps(), 2)} times as long"),
    (PERFORMANCE, f"Both together take {between(activated_means(), 2)} of the time"),
    (
        PERFORMANCE,
        f"takes {fused('ILMGN')[0]} (ILMGN) and {fused('EN')[0]} (EN) of the time with the "
        f"activations apart, and {fused('EN')[1]} of the memory",
    ),
    (PERFORMANCE, f"Forward and backward take {PLAIN_TORCH} times BatchNorm's or GroupNorm's"),
    (PERFORMANCE, f"memory is up to {max(without_c(memory)):.1f} times as large"),
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
    (
        PERFORMANCE,
        f"slower on each of the {len(ILMGN)} maps, by {between(over_plain(MAPS))} times, "
        f"ILMGN by {between(over_plain(ILMGN))}, because the GPU waited for Python in "
        f"{between(WAITING, 0)} % of the time",
    ),
    (
        PERFORMANCE,
        f"ILMGN was faster on {sum(ratio < 1 for ratio in AS_GRAPHS)} of the {len(AS_GRAPHS)}",
    ),
    (
        PERFORMANCE,
        f"ILMGN still took {CALLS['a9e7d192']['ILMGN']} microseconds on a small map, and GroupNorm "
        f"{CALLS['a9e7d192']['GN']}",
    ),
    (PERFORMANCE, f"a step with ILMGN took {milliseconds('compiled', 'ILMGN')} ms, all of it the"),
    (PERFORMANCE, f"took {LATER['EN']} GB with EN and {LATER['GN']} GB with GroupNorm"),
    (PERFORMANCE, f"EN and SN took {between(BOX_HEAD)} times BatchNorm's time on the box head"),
    (
        PERFORMANCE,
        f"ILMGN took {one(GPU, ['ILMGN'], 'float32', 'res5', times='both, graph')} and AN "
        f"{one(GPU, ['AN'], 'float32', 'res5', times='both, graph')} times GroupNorm's",
    ),
    (PERFORMANCE, f"layer alone takes {between(COMPILED, 2)} times as long as the uncompiled"),
    (
        BENCHMARKS,
        "takes {GN} microseconds with GroupNorm, {BN} with BatchNorm, {ILMGN} with ILMGN, "
        "{EN} with EN, {SN} with SN, {SSN} with SSN and {AN} with AN: ".format(**CALLS["a9e7d192"])
        + f"{between(OVER_GN)} times GroupNorm's time",
    ),
    (BENCHMARKS, "it was {ILMGN:.1f} (ILMGN) to {EN:.1f} times (EN)".format(**EARLIER)),
]


@pytest.mark.parametrize("page, sentence", SENTENCES)
def test_a_sentence_has_the_numbers_of_the_records(page, sentence):
    assert sentence in " ".join((ROOT / page).read_text("utf-8").split())


def test_an_eager_layer_is_slower_than_the_plain_norm_on_every_map_as_the_pages_say():
    assert min(over_plain(MAPS)) > 1


def test_a_compiled_step_waits_for_the_host_as_the_page_says():
    times = STEPS["compiled"]["ILMGN"]
    assert times["host seconds"] >= times["seconds"]
