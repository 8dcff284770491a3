"""The benchmark's tables in Markdown, and its plot; the documentation shows the committed record.

``results`` is the dict that ``python -m benchmarks`` writes as benchmark.json, and a ``row`` one of
its entries (see :mod:`.layers`). ``which`` is a pass, "forward" or "both" (forward and backward).

``python -m benchmarks.report output/benchmark/benchmark.json`` makes these results the record; what
was not measured, of the part "training" and of all others together, is kept from the former record.
Results of a GPU, such as output/gpu/benchmark.json, have a record of their own.
"""

import json
import math
import re
import sys
from pathlib import Path
from statistics import geometric_mean

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "record.json"
RECORD_OF_GPU = ROOT / "benchmarks" / "record_gpu.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "gpu.md")
#: A table in a page: start marker, name of the table, end marker.
TABLE = re.compile(r"(<!-- benchmark: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

#: Number of maps that a pass must read or write: forward x and y; backward also dy, x and dx.
MAPS_MOVED = {"forward": 2, "both": 5}
#: (setting, pass) -> heading of its column.
COLUMNS = {
    ("float32", "forward"): "forward",
    ("float32", "both"): "forward + backward",
    ("one thread", "forward"): "forward, one thread",
    ("one thread", "both"): "both, one thread",
    ("channels last", "both"): "both, channels last",
    ("float16", "both"): "both, float16",
    ("bfloat16", "both"): "both, bfloat16",
    ("channels last, float16", "both"): "both, channels last, float16",
    ("channels last, bfloat16", "both"): "both, channels last, bfloat16",
}
#: Targets on a GPU: layer, setting, quantity (see :func:`targets`), target, goal.
TARGETS = (
    ("ILMGN", "float32", "over plain", "1.0", "0.8"),
    ("ILMGN", "channels last", "over plain", "0.7", "0.5"),
    ("EN", "float32", "over plain", "1.0", ""),
    ("ILMGN", "float32", "of a copy's bandwidth", "80 %", "90 %"),
    ("ILMGN", "float32", "launches", "1, 2", ""),
)
NOT_MEASURED = "not measured"


def write(results: dict, folder: Path) -> str:
    """Write benchmark.json, .md and .png to a folder; return the tables in Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(to_json(results))
    (folder / "benchmark.md").write_text(everything(results) + "\n")
    if "float32" in results["layers"]:
        plot(results["layers"]["float32"], folder / "benchmark.png")
    return everything(results)


def to_json(results: dict) -> str:
    """Return results as JSON, rounded to four digits; innermost lists and dicts have a line."""
    text = json.dumps(results)
    text = json.dumps(json.loads(text, parse_float=lambda n: float(f"{float(n):.4g}")), indent=1)
    return re.sub(r"\n {4,}", " ", text) + "\n"


def everything(results: dict) -> str:
    """Return all tables in Markdown."""
    parts = [about(results), means(results)]
    for name in results["layers"]:
        parts += [f"{name}:", maps(results, name)]
    if "without C" in results["layers"]:
        parts.append(without_c(results))
    return "\n\n".join((*parts, compiled(results), steps(results), training(results)))


def about(results: dict) -> str:
    """Return a sentence on the machine, torch, the number of rounds and the commit."""
    machine = results["machine"]
    where = machine["device"]
    if where == "cpu":
        where = f"{machine['processor']}, kernels for {machine['kernels for']}"
        where += f", {machine['threads']} threads unless stated otherwise"
    rounds = f"medians of {results['rounds']} interleaved rounds"
    return f"{where}, torch {machine['torch']}, {rounds}, at commit {machine['commit']}."


def means(results: dict) -> str:
    """Return the table of geometric means over maps: the ratio to the plain norm, and GB/s."""
    rows_of, lines = results["layers"], []
    columns = {key: title for key, title in COLUMNS.items() if key[0] in rows_of}
    more = ["faster than unfused", "kept for backward"] if "float32" in rows_of else []
    for layer, baseline in _layer_pairs(rows_of):
        own = {n: [row for row in rows if row["layer"] == layer] for n, rows in rows_of.items()}
        cells = [
            f"{_mean_ratio(own[name], which):.2f} ({_mean_bandwidth(own[name], which):.1f})"
            for name, which in columns
        ]
        if more:
            rows = own["float32"]
            faster = geometric_mean(1 / _pass_times(row, "both")["over unfused"][0] for row in rows)
            saved = 100 * (max(_bytes_ratio(row, "saved bytes") for row in rows) - 1)
            cells += [f"{faster:.1f} x", f"{round(saved, 1) + 0.0:+.1f} %"]
        lines.append([f"{layer} / {baseline}", *cells])
    copies = (f"({_mean_bandwidth(rows_of[name], 'forward', 'copy'):.1f})" for name, _ in columns)
    lines.append(["copying x", *copies, *("" for _ in more)])
    return _markdown_table(["layer / plain", *columns.values(), *more], lines)


def short(results: dict) -> str:
    """Return the table of forward and backward over the plain norm, and on what it was measured.

    Each ratio is a geometric mean over the maps.
    """
    rows_of, lines = results["layers"], []
    settings = [name for name, which in COLUMNS if which == "both" and name in rows_of]
    for layer, baseline in _layer_pairs(rows_of):
        own = ([row for row in rows_of[name] if row["layer"] == layer] for name in settings)
        ratios = (f"{_mean_ratio(rows, 'both'):.2f}" for rows in own)
        lines.append([f"{layer} / {baseline}", *ratios])
    return "\n\n".join((_markdown_table(["layer / plain", *settings], lines), about(results)))


def gpu(results: dict) -> str:
    """Return the tables of a GPU.

    Targets, means, ILM+GN over Liger's GroupNorm, layers under torch.compile, and whole models.
    """
    ratios = []
    for name, rows in results["layers"].items():
        both = [_pass_times(row, "both") for row in rows if row["layer"] == "ILMGN"]
        found = [times["over Liger"][0] for times in both if "over Liger" in times]
        ratios.append([name, f"{geometric_mean(found):.2f}" if found else NOT_MEASURED])
    liger = _markdown_table(["both passes", "ILMGN / Liger's GroupNorm"], ratios)
    tables = (targets(results), means(results), liger, compiled(results), steps(results))
    return "\n\n".join((about(results), *tables))


def targets(results: dict) -> str:
    """Return the table of targets on a GPU and the measured values.

    Each quantity is given as the geometric mean over all maps, and at the box head:

    - "over plain": time of forward and backward divided by the plain norm's;
    - "of a copy's bandwidth": time of a copy divided by the forward pass's;
    - "launches": kernel launches of the forward and of the backward pass, at the box head alone.
    """
    lines = []
    for layer, setting, quantity, target, goal in TARGETS:
        rows = [row for row in results["layers"].get(setting, []) if row["layer"] == layer]
        box_head = [row for row in rows if row["shape name"] == "box head"]
        if quantity == "launches":
            cells = ["", *(_launches(row) for row in box_head)]
        elif quantity == "over plain":
            cells = [f"{_mean_ratio(own, 'both'):.2f}" for own in (rows, box_head) if own]
        else:
            shares = [
                geometric_mean(1 / _pass_times(row, "forward")["over copy"][0] for row in own)
                for own in (rows, box_head)
                if own
            ]
            cells = [f"{100 * share:.0f} %" for share in shares]
        cells += [NOT_MEASURED] * (2 - len(cells))
        lines.append([f"{layer}, {setting}: {quantity}", target, goal, *cells])
    return _markdown_table(["", "target", "goal", "all maps", "box head"], lines)


def maps(results: dict, name: str) -> str:
    """Return the table of each layer on each map, in the setting ``name``."""
    titles = ["layer / plain", "map", "forward, ms", "over plain", "over copy", "GB/s", "copy GB/s"]
    titles += ["both, ms", "over plain", "GB/s", "kept", "peak"]
    lines = []
    for row in results["layers"][name]:
        forward, both = (_pass_times(row, which) for which in MAPS_MOVED)
        lines.append(
            [
                f"{row['layer']} / {row['baseline']}",
                f"{row['shape name']} {'x'.join(map(str, row['shape']))}",
                f"{1e3 * forward['seconds']:.2f}",
                _ratio_text(forward["over baseline"]),
                _ratio_text(forward["over copy"]),
                f"{_bandwidth(row, 'forward'):.1f}",
                f"{_bandwidth(row, 'forward', 'copy'):.1f}",
                f"{1e3 * both['seconds']:.2f}",
                _ratio_text(both["over baseline"]),
                f"{_bandwidth(row, 'both'):.1f}",
                f"{_bytes_ratio(row, 'saved bytes'):.3f}",
                f"{_bytes_ratio(row, 'peak bytes'):.2f}",
            ]
        )
    return _markdown_table(titles, lines)


def without_c(results: dict) -> str:
    """Return the table of ratios to the plain norms without C kernels, geometric means."""
    lines = []
    for layer, baseline in _layer_pairs(results["layers"]):
        own = [row for row in results["layers"]["without C"] if row["layer"] == layer]
        ratios = (f"{_mean_ratio(own, which):.2f}" for which in MAPS_MOVED)
        peak = geometric_mean(_bytes_ratio(row, "peak bytes") for row in own)
        lines.append([f"{layer} / {baseline}", *ratios, f"{peak:.2f}"])
    return _markdown_table(["layer / plain", "forward", "both", "peak memory of both"], lines)


def compiled(results: dict) -> str:
    """Return the table of layers, by kernels and compiled, over plain norms likewise."""
    titles = ["layer / plain", "map", "pass", "kernels / compiled layer", "kernels / plain"]
    titles += ["kernels / compiled plain", "compiled layer / compiled plain"]
    lines = []
    for row in results["compiled"]:
        for which in MAPS_MOVED:
            times, rivals = _pass_times(row, which), ("compiled", "baseline", "compiled baseline")
            ratios = (_ratio_text(times[f"over {who}"]) for who in rivals)
            compiled = times["compiled seconds"] / times["compiled baseline seconds"]
            names = f"{row['layer']} / {row['baseline']}", row["shape name"], which
            lines.append([*names, *ratios, f"{compiled:.2f}"])
    return _markdown_table(titles, lines)


def steps(results: dict) -> str:
    """Return the table of training steps of whole models."""
    lines = []
    for row in results["models"]:
        if "missing" in row:
            lines.append([row["model"], row["missing"], "", ""])
            continue
        peak = row["peak bytes"][row["norm"]] / row["peak bytes"][row["baseline"]]
        name = f"{row['model']}, {row['norm']} / {row['baseline']}"
        cells = f"{row['seconds']:.2f}", _ratio_text(row["over baseline"], 3), f"{peak:.2f}"
        lines.append([name, *cells])
    return _markdown_table(["training step", "s", "over plain", "peak memory"], lines)


def training(results: dict) -> str:
    """Return the table of training steps under options, and how they were measured; "" without."""
    measured = results["training"]
    if not measured:
        return ""
    columns = ("channels last", "fused", "both", "both, mixed precision")
    columns = [c for c in columns if any(c in row.get("seconds", ()) for row in measured["rows"])]
    lines = []
    for row in measured["rows"]:
        if "missing" in row:
            lines.append([row["step"], row["missing"], *("" for _ in columns), ""])
            continue
        plain, both = (f"{1e3 * row['seconds'][name]:.0f}" for name in ("plain", "both"))
        ratios = (_ratio_text(row["over plain"][name]) for name in columns)
        lines.append([f"{row['step']}, {'x'.join(map(str, row['batch']))}", plain, *ratios, both])
    titles = ["training step", "plain, ms", *columns, "both, ms"]
    titles = [title.replace("both", "channels last and fused") for title in titles]
    return f"{about(measured)}\n\n{_markdown_table(titles, lines)}"


def joined(parts: list[dict]) -> dict:
    """Return the results of several commands, at least one, as if of one command.

    If they ran on several machines or commits, these are listed.
    """
    whole = {**parts[0], "layers": {}, "machine": {}}
    for key in parts[0]["machine"]:
        found = list(dict.fromkeys(part["machine"][key] for part in parts))
        whole["machine"][key] = found[0] if len(found) == 1 else ", ".join(map(str, found))
    for part in parts:
        for name, rows in part["layers"].items():
            whole["layers"].setdefault(name, []).extend(rows)
    for key in ("compiled", "models"):
        whole[key] = [row for part in parts for row in part[key]]
    return whole


def merged(record: dict, results: dict) -> dict:
    """Return results for the record, with the parts that they lack from the former record.

    Raises:
        SystemExit: they have some, but not all, of the parts layers, compiled and models that the
            record has; these must come from one machine and commit.
    """
    parts = ("layers", "compiled", "models")
    lost = [part for part in parts if record[part] and not results[part]]
    others = any(results[part] for part in parts)
    if others and lost:
        sys.exit(f"the results lack {', '.join(lost)}, which the record has; measure them, too")
    whole = results if others else record
    return {**whole, "training": results["training"] or record["training"]}


def documented(results: dict, of_gpu: dict | None) -> dict[Path, str]:
    """Return documentation page -> its text with these results' tables in place of the old.

    ``of_gpu`` has a GPU's results; None if no GPU was measured.
    """
    tables = {
        "about": about(results),
        "means": means(results),
        "short": short(results),
        "maps": maps(results, "float32"),
        "without_c": without_c(results),
        "compiled": compiled(results),
        "steps": steps(results),
        "training": training(results),
        "gpu": gpu(of_gpu) if of_gpu else targets({"layers": {}}),
    }
    return {
        page: TABLE.sub(lambda m: f"{m[1]}\n{tables[m[2]]}\n\n{m[3]}", page.read_text("utf-8"))
        for page in PAGES
    }


def plot(rows: list[dict], path: Path) -> None:
    """Plot each layer's forward and backward time over its plain norm's, fused and unfused, as PNG.

    ``rows`` come from the setting "float32".
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from ilm_plugins.reproduction import pictures

    layers = list(dict.fromkeys(row["layer"] for row in rows))
    down = math.ceil(len(layers) / 4)
    figure, axes = pyplot.subplots(down, 4, figsize=(17, 3.5 * down), sharey=True, squeeze=False)
    for axis in axes.flat[len(layers) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, layers, strict=False):
        own = [row for row in rows if row["layer"] == name]
        at = range(len(own))
        both = [_pass_times(row, "both") for row in own]
        fused = [times["over baseline"][0] for times in both]
        unfused = [times["over baseline"][0] / times["over unfused"][0] for times in both]
        # Bars start at 1, so that the bar of a layer faster than the plain norm points down.
        for shift, ratios, style in (
            (-0.2, fused, {"label": "fused"}),
            (0.2, unfused, {"label": "unfused", "color": "lightgray"}),
        ):
            heights = [ratio - 1 for ratio in ratios]
            axis.bar([i + shift for i in at], heights, 0.4, bottom=1, **style)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_ylim(0.2, 60)
        ticks = 0.2, 0.5, 1, 2, 5, 10, 20, 50
        axis.set_yticks(ticks, map(str, ticks))
        axis.set_title(f"{name} over {own[0]['baseline']}")
        axis.set_xticks(list(at), [row["shape name"] for row in own], rotation=45, ha="right")
    for row in axes:
        row[0].set_ylabel("forward + backward time")
    axes[0, 0].legend(ncols=2, loc="upper left")
    figure.tight_layout()
    pictures.save(figure, path, rows)
    pyplot.close(figure)


def _layer_pairs(of_settings: dict[str, list[dict]]) -> list[tuple[str, str]]:
    """Return (layer, plain norm) of all rows, each once, in order; rows are given by setting."""
    rows = (row for rows in of_settings.values() for row in rows)
    return list(dict.fromkeys((row["layer"], row["baseline"]) for row in rows))


def _pass_times(row: dict, which: str) -> dict:
    """Return the times of a pass; on CUDA, the times of its replayed graph."""
    return row.get(f"{which}, graph", row[which])


def _bandwidth(row: dict, which: str, who: str = "") -> float:
    """Return the bandwidth in GB/s: the bytes that a pass must move over its time.

    ``who`` is a rival such as "copy"; by default the layer itself.
    """
    seconds = _pass_times(row, which)[f"{who} seconds".strip()]
    return MAPS_MOVED[which] * row["bytes"] / seconds / 1e9


def _launches(row: dict) -> str:
    """Return the numbers of kernels that the forward and the backward pass launch."""
    forward, both = (row["launches"][which] for which in MAPS_MOVED)
    return f"{forward}, {both - forward}"


def _mean_ratio(rows: list[dict], which: str) -> float:
    """Return the geometric mean of a pass's time over the plain norm's."""
    return geometric_mean(_pass_times(row, which)["over baseline"][0] for row in rows)


def _mean_bandwidth(rows: list[dict], which: str, who: str = "") -> float:
    """Return the geometric mean of :func:`_bandwidth`."""
    return geometric_mean(_bandwidth(row, which, who) for row in rows)


def _bytes_ratio(row: dict, what: str) -> float:
    """Return a layer's bytes over its plain norm's; ``what`` is "saved bytes" or "peak bytes"."""
    return row[what]["this"] / row[what]["baseline"]


def _markdown_table(titles: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table."""
    rows = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join((f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *rows))


def _ratio_text(quartiles: tuple[float, float, float], digits: int = 2) -> str:
    """Format (median, lower, upper quartile) as "1.20 (1.10-1.30)"."""
    median, lower, upper = quartiles
    return f"{median:.{digits}f} ({lower:.{digits}f}-{upper:.{digits}f})"


def records() -> tuple[dict, dict | None]:
    """Return the CPU's record, and the GPU's; None if no GPU was measured."""
    of_gpu = json.loads(RECORD_OF_GPU.read_text()) if RECORD_OF_GPU.exists() else None
    return json.loads(RECORD.read_text()), of_gpu


if __name__ == "__main__":
    if sys.argv[1:]:
        results = json.loads(Path(sys.argv[1]).read_text())
        if results["machine"]["device"] == "cpu":
            RECORD.write_text(to_json(merged(json.loads(RECORD.read_text()), results)))
        else:
            RECORD_OF_GPU.write_text(to_json(results))
    record, record_of_gpu = records()
    for page, text in documented(record, record_of_gpu).items():
        page.write_text(text, "utf-8")
    plot(record["layers"]["float32"], ROOT / "docs" / "benchmark.png")
