"""The benchmark's table, JSON and plot."""

import json
import math
from pathlib import Path

#: (layer, pass) -> the ratio over the plain norm to reach, a geometric mean over the maps
TARGETS = {
    "cpu": {
        ("ILMGN", "forward"): 1.8,
        ("ILMGN", "both"): 1.7,
        ("ILMIN", "both"): 1.2,
        ("EN", "both"): 1.2,
        ("SN", "both"): 1.2,
    },
    "cuda": {("ILMGN", "both"): 1.0},
}

#: Elements of an instance that a CUDA kernel reads once, and the layers for which it does; what is
#: larger it reads twice.
READ_ONCE_ELEMENTS = 16384
READ_ONCE_LAYERS = ("ILMGN", "ILMIN", "ILMLN", "AssocNorm")


def geometric_mean(values) -> float:
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def table(results: dict) -> str:
    """Everything in Markdown."""
    cuda = results["device"] != "cpu"
    what = "device time of a replayed CUDA graph" if cuda else f"{results['threads']} threads"
    lines = [
        f"{results['device']}, torch {results['torch']}, {what}, {results['layout']}, medians of "
        f"{results['rounds']} interleaved rounds (and quartiles)",
        "",
        "| layer / plain | map | forward, ms | over plain | both, ms | over plain "
        "| unfused over this | saved | peak |" + (" eager over plain | of a copy |" * cuda),
        "|---" * (11 if cuda else 9) + "|",
    ]
    for row in results["layers"]:
        forward, both, name, baseline = *_passes(row), row["layer"], row["baseline"]
        line = (
            f"| {name} / {baseline} | {row['shape name']} {'x'.join(map(str, row['shape']))} "
            f"| {1e3 * forward['seconds']:.2f} | {_ratio(forward['over baseline'])} "
            f"| {1e3 * both['seconds']:.2f} | {_ratio(both['over baseline'])} "
            f"| {1 / both['over unfused'][0]:.1f} "
            f"| {row['saved bytes']['this'] / row['saved bytes']['baseline']:.3f} "
            f"| {row['peak bytes']['this'] / row['peak bytes']['baseline']:.2f} |"
        )
        if cuda:
            fits = math.prod(row["shape"][1:]) <= READ_ONCE_ELEMENTS
            once = fits and name in READ_ONCE_LAYERS
            passes = 2 if once else 3
            bandwidth = passes / 2 / forward["over copy"][0]
            line += f" {_ratio(row['both']['over baseline'])} | {bandwidth:.0%} |"
        lines.append(line)
    lines += ["", "| geometric mean | forward | both | unfused over this |", "|---" * 4 + "|"]
    targets = TARGETS["cuda" if cuda else "cpu"]
    for name, means in results["means"].items():
        cells = [
            f"{means[key]:.2f}" + (f" (aim {aim})" if (aim := targets.get((name, key))) else "")
            for key in ("forward", "both")
        ]
        lines.append(
            f"| {name} / {means['baseline']} | {' | '.join(cells)} | {means['unfused']:.1f} |"
        )
    if not cuda:
        lines.append("| on CUDA | not measured | not measured | not measured |")
    if results["compiled"]:
        lines += ["", "| torch.compile | map | forward over fused | both over fused |"]
        lines.append("|---" * 4 + "|")
    for row in results["compiled"]:
        ratios = [_ratio(row[pass_name]["over fused"]) for pass_name in ("forward", "both")]
        lines.append(f"| {row['layer']} | {row['shape name']} | {' | '.join(ratios)} |")
    lines += ["", "| training step | s | over plain |", "|---|---|---|"]
    for row in results["models"]:
        if "missing" in row:
            lines.append(f"| {row['model']} | {row['missing']} | |")
        else:
            lines.append(
                f"| {row['model']}, {row['norm']} / {row['baseline']} | {row['seconds']:.2f} "
                f"| {_ratio(row['over baseline'], 3)} |"
            )
    if not cuda:
        lines.append("| on CUDA | not measured | not measured |")
    return "\n".join(lines)


def _passes(row: dict) -> tuple[dict, dict]:
    """The times of the forward pass and of both, on CUDA those of the device."""
    return tuple(row.get(f"{name}, graph", row[name]) for name in ("forward", "both"))


def means(rows: list[dict]) -> dict:
    """layer -> geometric means of its ratios over all maps."""
    found = {}
    for name in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == name]
        forward, both = zip(*map(_passes, own), strict=True)
        found[name] = {
            "baseline": own[0]["baseline"],
            "forward": geometric_mean(times["over baseline"][0] for times in forward),
            "both": geometric_mean(times["over baseline"][0] for times in both),
            "unfused": geometric_mean(1 / times["over unfused"][0] for times in both),
        }
    return found


def write(results: dict, folder: Path) -> None:
    """benchmark.json, benchmark.md and benchmark.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "benchmark.md").write_text(table(results) + "\n")
    plot(results["layers"], folder / "benchmark.png")


def plot(rows: list[dict], path: Path) -> None:
    """Forward and backward time over the plain norm's, of each layer, fused and unfused."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, layers, strict=False):
        own = [row for row in rows if row["layer"] == name]
        at = range(len(own))
        both = [_passes(row)[1] for row in own]
        fused = [times["over baseline"][0] for times in both]
        unfused = [times["unfused seconds"] / times["baseline seconds"] for times in both]
        axis.bar([i - 0.2 for i in at], fused, 0.4, label="fused")
        axis.bar([i + 0.2 for i in at], unfused, 0.4, label="unfused", color="lightgray")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_ylim(0.5, 40)
        axis.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        axis.set_title(f"{name} over {own[0]['baseline']}")
        axis.set_xticks(list(at), [row["shape name"] for row in own], rotation=45, ha="right")
    axes[0, 0].set_ylabel("forward + backward time")
    axes[1, 0].set_ylabel("forward + backward time")
    axes[0, 0].legend(ncols=2, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _ratio(quartiles: tuple[float, float, float], digits: int = 2) -> str:
    median, lower, upper = quartiles
    return f"{median:.{digits}f} ({lower:.{digits}f}-{upper:.{digits}f})"
