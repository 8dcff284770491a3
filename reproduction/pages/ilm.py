"""ResNet-20 on CIFAR-10: does ILM add to the norm that it builds on?"""

from statistics import mean

from matplotlib.figure import Figure

from ilm_plugins.reports.style import OKABE_ITO, styled
from ilm_plugins.reports.table import of_dicts

from .comparisons import COLUMNS, Pair, tested
from .results import OWN_TEST, Results, by_seed

COMPARISON = "ilm"
PLANNED = 6
#: Plain norm -> its ILM form; LN is GN of one group.
PAIRS = {"GN": "ILMGN", "IN": "ILMIN", "LN": "ILMLN"}
#: BN is a mark, which is not tested.
ARMS = [*(norm for pair in PAIRS.items() for norm in pair), "BN"]
METRIC, LOSS = "top-1", "training loss"
#: Measured in turn before the trainings; it has no seed.
STEP = "seconds of a step"


def values(results: Results, norm: str, metric: str = METRIC) -> dict[int, float]:
    """Return seed -> metric of an arm, of the seeds that all arms have, in their order."""
    found = [by_seed(results, COMPARISON, arm, OWN_TEST, METRIC) for arm in ARMS]
    seeds = sorted(set.intersection(*map(set, found)))
    one = by_seed(results, COMPARISON, norm, OWN_TEST, metric)
    return {seed: one[seed] for seed in seeds}


def answers(results: Results) -> list[str]:
    """Return the table of the three tests, with loss and time beside them, and BN's mean."""
    found = []
    for plain, ours in PAIRS.items():
        both = Pair(values(results, plain), values(results, ours))
        if not both.plain:
            return [f"No seed has all models yet (0 of {PLANNED})."]
        losses = (mean(values(results, norm, LOSS).values()) for norm in (plain, ours))
        steps = [by_seed(results, COMPARISON, norm, metric=STEP)[None] for norm in (plain, ours)]
        means = (f"{norm} {m:.1f}" for norm, m in zip((plain, ours), both.means, strict=True))
        row = dict(zip(("norm", "with ILM"), means, strict=True))
        last = {
            "training loss": " -> ".join(f"{loss:.3f}" for loss in losses),
            "time": f"{steps[1] / steps[0]:.2f}",
        }
        found.append((row, last, both.difference))
    mark = values(results, "BN")
    columns = COLUMNS[:3] if len(mark) == PLANNED else COLUMNS[:1]  # nothing is tested before
    rows = tested([(row, difference) for row, _, difference in found], columns)
    rows = [row | last for row, (_, last, _) in zip(rows, found, strict=True)]
    below = f"{len(mark)} of {PLANNED} seeds. BN, not tested: {mean(mark.values()):.1f}."
    return [*of_dicts(rows), "", below]


@styled
def points(results: Results) -> Figure:
    """Plot each seed's top-1, of a norm and with ILM, joined by a line."""
    fig = Figure((4, 3), layout="constrained")
    axis = fig.subplots()
    for i, pair in enumerate(PAIRS.items()):
        both = [values(results, norm) for norm in pair]
        for seed in both[0]:
            ends = [one[seed] for one in both]
            axis.plot([3 * i, 3 * i + 1], ends, "o-", color=OKABE_ITO[i], markersize=4)
    last = 3 * len(PAIRS)
    axis.plot([last] * len(both[0]), [*values(results, "BN").values()], "o", color="0.5", ms=4)
    places = [3 * i + j for i in range(len(PAIRS)) for j in (0, 1)]
    axis.set_xticks([*places, last], ARMS, rotation=45)
    axis.set_ylabel("top-1, %; a point is a seed")
    return fig
