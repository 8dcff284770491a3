"""The benchmark's table, JSON and plot."""

import json
import math
from pathlib import Path

#: figure -> the ratio to reach, over the plain norm; None where there is no GPU to measure it
TARGETS = {
    ("ILMGN", "forward"): 1.8,
    ("ILMGN", "both"): 1.7,
    ("ILMIN", "both"): 1.2,
    ("EN", "both"): 1.2,
    ("SN", "both"): 1.2,
}


def geometric_mean(values) -> float:
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def table(results: dict) -> str:
    """Everything in Markdown."""
    lines = [
        f"{results['device']}, torch {results['torch']}, {results['threads']} threads, "
        f"{results['layout']}, medians of {results['rounds']} interleaved rounds (quartiles)",
        "",
        "| layer | map | forward, ms | over plain | both, ms | over plain | unfused over this "
        "| saved | peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["layers"]:
        forward, both, name, baseline = row["forward"], row["both"], row["layer"], row["baseline"]
        lines.append(
            f"| {name} / {baseline} | {row['shape name']} {'x'.join(map(str, row['shape']))} "
            f"| {1e3 * forward['seconds']:.2f} | {_ratio(forward['over baseline'])} "
            f"| {1e3 * both['seconds']:.2f} | {_ratio(both['over baseline'])} "
            f"| {both['unfused over this'][0]:.1f} "
            f"| {row['saved bytes'][name] / row['saved bytes'][baseline]:.3f} "
            f"| {row['peak bytes'][name] / row['peak bytes'][baseline]:.2f} |"
        )
    lines += [
        "",
        "| geometric mean | forward | both | unfused over this, both |",
        "|---|---|---|---|",
    ]
    for name, means in results["means"].items():
        lines.append(
            f"| {name} / {means['baseline']} | {means['forward']:.2f}{_target(name, 'forward')} "
            f"| {means['both']:.2f}{_target(name, 'both')} | {means['unfused']:.1f} |"
        )
    lines += ["", "| training step | s | over plain |", "|---|---|---|"]
    for row in results["models"]:
        if "missing" in row:
            lines.append(f"| {row['model']} | {row['missing']} | |")
            continue
        lines.append(
            f"| {row['model']}, {row['norm']} / {row['baseline']} | {row['seconds']:.2f} "
            f"| {_ratio(row['over baseline'], 3)} |"
        )
    if results["device"] == "cpu":
        lines.append("| the same on CUDA | not measured | |")
    return "\n".join(lines)


def means(rows: list[dict]) -> dict:
    """layer -> geometric means of its ratios over all maps."""
    found = {}
    for name in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == name]
        found[name] = {
            "baseline": own[0]["baseline"],
            "forward": geometric_mean(row["forward"]["over baseline"][0] for row in own),
            "both": geometric_mean(row["both"]["over baseline"][0] for row in own),
            "unfused": geometric_mean(row["both"]["unfused over this"][0] for row in own),
        }
    return found


def write(results: dict, folder: Path) -> None:
    """benchmark.json, benchmark.md and benchmark.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "benchmark.md").write_text(table(results) + "\n")
    plot(results["layers"], folder / "benchmark.png")


def plot(rows: list[dict], path: Path) -> None:
    """Forward and backward time over the plain norm's: each layer on each map, fused and unfused."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, layers, strict=False):
        own = [row for row in rows if row["layer"] == name]
        at = range(len(own))
        fused = [row["both"]["over baseline"][0] for row in own]
        unfused = [row["both"]["unfused seconds"] / row["both"]["baseline seconds"] for row in own]
        axis.bar([i - 0.2 for i in at], fused, 0.4, label="fused")
        axis.bar([i + 0.2 for i in at], unfused, 0.4, label="unfused", color="lightgray")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_title(f"{name} over {own[0]['baseline']}")
        axis.set_xticks(list(at), [row["shape name"] for row in own], rotation=45, ha="right")
    axes[0, 0].set_ylabel("forward + backward time")
    axes[1, 0].set_ylabel("forward + backward time")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _ratio(quartiles: tuple[float, float, float], digits: int = 2) -> str:
    median, lower, upper = quartiles
    return f"{median:.{digits}f} ({lower:.{digits}f}-{upper:.{digits}f})"


def _target(name: str, pass_name: str) -> str:
    target = TARGETS.get((name, pass_name))
    return "" if target is None else f" (aim {target})"
