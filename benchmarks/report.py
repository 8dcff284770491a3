"""The benchmark's tables in Markdown, and its chart; the documentation shows the committed record.

``python -m benchmarks.report output/benchmark/benchmark.json`` makes these results the record of
the CPU, and so output/benchmark/host.json; a folder of ``benchmarks.gpu`` becomes the record of the
GPU. Without a file, only the pages are written again.
"""

import json
import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from statistics import geometric_mean
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure

from ilm_plugins.reports import style
from ilm_plugins.reports.style import OKABE_ITO, styled
from ilm_plugins.reports.table import markdown as markdown_lines

from . import measure
from .layers import SHAPES
from .steps import STEP_BASELINES

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "record.json"
RECORD_OF_GPU = ROOT / "benchmarks" / "record_gpu.json"
RECORD_OF_HOST = ROOT / "benchmarks" / "record_host.json"
PAGES = tuple(ROOT / page for page in ("docs/performance.md", "benchmarks/README.md"))
CHART = ROOT / "docs" / "figures" / "speed.png"
#: Layer -> the plain norm that it is compared with on a GPU.
ON_GPU = {"ILMGN": "GN", "AN": "GN", "EN": "BN", "SN": "BN", "SSN": "BN"}
#: Mode in which a layer was timed on a GPU -> what the names of its times end with.
MODES = {"eager": "", "CUDA graph": ", graph"}
#: A table in a page: start marker, name of the table, end marker.
TABLE = re.compile(r"(<!-- benchmark: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: Pattern of a plain norm's name at the end of "layer / plain" -> its key.
PLAIN = {"GroupNorm$": "GN", "BatchNorm2d$": "BN"}
#: Number of maps that a pass must read or write: forward x and y; backward also dy, x and dx.
MAPS_MOVED = {"forward": 2, "both": 5}


def write(results: dict, folder: Path) -> str:
    """Write benchmark.json and .md to a folder; return the tables in Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(measure.to_json(results))
    (folder / "benchmark.md").write_text(everything(results) + "\n")
    return everything(results)


def passes(results: dict, ending: str = ", graph") -> pd.DataFrame:
    """Return a row for each setting, layer, map and pass; on CUDA, of the mode of an ending."""
    rows = []
    for setting, row in ((s, row) for s, measured in results["layers"].items() for row in measured):
        forward, both = (row.get(f"{which}{ending}", row[which]) for which in MAPS_MOVED)
        for (which, moved), times in zip(MAPS_MOVED.items(), (forward, both), strict=True):
            ratios = {key: value for key, value in times.items() if key.startswith("over ")}
            rows.append(
                {
                    "layer / plain": f"{row['layer']} / {row['baseline']}",
                    "map": f"{row['shape name']} {'x'.join(map(str, row['shape']))}",
                    **{"shape name": row["shape name"], "setting": setting, "pass": which},
                    "seconds": times["seconds"],
                    "ms": f"{1e3 * times['seconds']:#.3g}".rstrip("."),
                    "GB/s": moved * row["bytes"] / times["seconds"] / 1e9,
                    "copy GB/s": 2 * row["bytes"] / forward["copy seconds"] / 1e9,
                    "kept": row["saved bytes"]["this"] / row["saved bytes"]["baseline"],
                    "peak": row["peak bytes"]["this"] / row["peak bytes"]["baseline"],
                    **{name: quartiles[0] for name, quartiles in ratios.items()},
                    **{f"{name}, text": text(quartiles) for name, quartiles in ratios.items()},
                }
            )
    return pd.DataFrame(rows)


def text(quartiles: list[float], digits: int = 2) -> str:
    """Format (median, lower, upper quartile) as "1.20 (1.10-1.30)"."""
    median, lower, upper = quartiles
    return f"{median:.{digits}f} ({lower:.{digits}f}-{upper:.{digits}f})"


def markdown(frame: pd.DataFrame) -> str:
    return "\n".join(markdown_lines(frame.columns, frame.fillna("").values)) if len(frame) else ""


def mean(groups, shown: str) -> pd.Series:
    """Return the geometric mean of each group as text, in a format such as "{:.2f}"."""
    return groups.agg(geometric_mean).map(shown.format)


def about(results: dict) -> str:
    machine = results["machine"]
    where = machine["device"]
    if where == "cpu":
        where = (
            f"{machine['processor']}, kernels for {machine['kernels for']}, "
            f"{machine['threads']} threads unless stated otherwise"
        )
    rounds = results["rounds"] and f"medians of {results['rounds']} interleaved rounds, "
    return f"{where}, torch {machine['torch']}, {rounds or ''}at commit {machine['commit']}."


def means(results: dict) -> str:
    """Return the table of geometric means over maps: the ratio to the plain norm, and GB/s."""
    frame = passes(results)
    both = frame["pass"] == "both"
    frame["column"] = frame["pass"] + ", " + frame.setting
    frame.loc[frame.setting == "float32", "column"] = frame["pass"]
    left = (frame.setting == "without C") | (~both & ~frame.setting.isin(("float32", "one thread")))
    groups = frame[~left].groupby(["layer / plain", "column"], sort=False)
    cells = mean(groups["over baseline"], "{:.2f}") + mean(groups["GB/s"], " ({:.1f})")
    table = cells.unstack(sort=False)
    single = frame[both & (frame.setting == "float32")].groupby("layer / plain")
    if len(single):
        faster = single["over unfused"].agg(geometric_mean)
        table["faster than unfused"] = (1 / faster).map("{:.1f} x".format)
        kept = 100 * (single.kept.max() - 1)
        table["kept for backward"] = (kept.round(1) + 0.0).map("{:+.1f} %".format)
    table.loc["copying x"] = mean(frame[~left].groupby("column")["copy GB/s"], "({:.1f})")
    return markdown(table.reset_index())


def spread(groups) -> pd.Series:
    """Return each group's geometric mean, minimum and maximum as "1.20 (1.10-1.30)"."""
    return groups.agg(lambda ratios: text([geometric_mean(ratios), min(ratios), max(ratios)]))


def short(results: dict) -> str:
    """Return the table of forward and backward over the plain norm, and the machine."""
    frame = passes(results)
    frame = frame[(frame.setting != "without C") & (frame["pass"] == "both")]
    ratios = frame.groupby(["layer / plain", "setting"], sort=False)["over baseline"]
    return f"{markdown(spread(ratios).unstack(sort=False).reset_index())}\n\n{about(results)}"


def on_gpu(results: dict) -> str:
    """Return the table of all that was measured on a GPU, over the plain norm: a row a mode."""
    rows = [*rows_of_layers(results), *rows_of_calls(results), *rows_of_steps(results)]
    names = [f"{norm} / {plain}" for norm, plain in ON_GPU.items()]
    columns = ["measured", "mode", "at commit", *names, "host's part"]
    return markdown(pd.DataFrame(rows, columns=columns).fillna("-"))


def rows_of_layers(results: dict) -> Iterator[dict]:
    frames = {mode: passes(results, ending) for mode, ending in MODES.items()}
    waiting = 100 * (1 - frames["CUDA graph"].seconds / frames["eager"].seconds)
    for setting in results["layers"]:
        for mode, frame in frames.items():
            rows = (frame.setting == setting) & (frame["pass"] == "both")
            names = frame["layer / plain"].replace(PLAIN, regex=True)
            cells = spread(frame[rows].groupby(names)["over baseline"])
            parts = waiting[rows]
            part = f"{parts.min():.0f} to {parts.max():.0f} %" if mode == "eager" else "none"
            yield {
                **{"measured": f"a layer on eight maps, {setting}", "mode": mode},
                **{"at commit": results["machine"]["commit"], **cells, "host's part": part},
            }


def rows_of_calls(results: dict) -> Iterator[dict]:
    """Yield the row of the host's time on a small map, of the last commit that has one."""
    if "host" in results:
        commit, times = [*results["host"]["microseconds"].items()][-1]
        shape = "x".join(map(str, results["host"]["shape"]))
        yield {
            **{"measured": f"a call on a small map, {shape}", "mode": "eager", "at commit": commit},
            **over_plain(times),
            "host's part": "host's time alone",
        }


def rows_of_steps(results: dict) -> Iterator[dict]:
    """Yield the rows of the times and peak memory of ResNet-50's training step."""
    for way, norms in results["steps"].items():
        row = {"mode": mode_of(way), "at commit": commit_of(way, results)}
        cells = over_plain({norm: times["seconds"] for norm, times in norms.items()})
        parts = [
            100 * min(1, norms[norm]["host seconds"] / norms[norm]["seconds"])
            for norm in ON_GPU
            if "host seconds" in norms.get(norm, {})
        ]
        part = f"{min(parts):.0f} %" if parts else "none" if way == "graph" else "not measured"
        yield {"measured": "ResNet-50's step", **row, **cells, "host's part": part}
        peaks = {
            norm: times["peak bytes"] for norm, times in norms.items() if "peak bytes" in times
        }
        if peaks:
            shown = {norm: f"{peak / 2**30:.1f}" for norm, peak in peaks.items()}
            cells = {
                f"{norm} / {plain}": f"{shown[norm]} / {shown[plain]}"
                for norm, plain in ON_GPU.items()
                if {norm, plain} <= shown.keys()
            }
            yield {"measured": "its peak memory, GiB", **row, **cells, "host's part": ""}


def mode_of(way: str) -> str:
    return "CUDA graph" if way == "graph" else way


def commit_of(way: str, results: dict) -> str:
    """Return the commit at which the training steps of a way were measured."""
    return results.get("commits of steps", {}).get(way, results["machine"]["commit"])


def over_plain(times: dict[str, float]) -> dict[str, str]:
    """Return column -> a norm's time over the plain norm's."""
    return {
        f"{norm} / {plain}": f"{times[norm] / times[plain]:.2f}"
        for norm, plain in ON_GPU.items()
        if {norm, plain} <= times.keys()
    }


def eager_maps(results: dict) -> str:
    """Return the table of each map in eager mode on a GPU: both passes over the plain norm's."""
    frame = passes(results, "")
    frame = frame[frame["pass"] == "both"]
    frame["column"] = frame["layer / plain"] + ", " + frame.setting
    table = frame.set_index(["map", "column"])["over baseline"].map("{:.2f}".format)
    return markdown(table.unstack(sort=False).reset_index())


def maps(results: dict) -> str:
    """Return the table of each layer on each map, in float32."""
    frame = passes(results)
    frame = frame[frame.setting == "float32"].set_index(["layer / plain", "map"])
    forward, both = (frame[frame["pass"] == which] for which in MAPS_MOVED)
    columns = {
        **{"forward, ms": forward.ms, "over plain": forward["over baseline, text"]},
        **{"both, ms": both.ms, "both over plain": both["over baseline, text"]},
        "peak": both.peak.map("{:.2f}".format),
    }
    return markdown(pd.DataFrame(columns).reset_index())


def without_c(results: dict) -> str:
    """Return the table of ratios to the plain norms without compiled kernels, geometric means."""
    frame = passes(results)
    frame = frame[frame.setting == "without C"]
    ratios = frame.groupby(["layer / plain", "pass"], sort=False)["over baseline"]
    table = mean(ratios, "{:.2f}").unstack(sort=False)
    table["peak memory of both"] = mean(frame.groupby("layer / plain").peak, "{:.2f}")
    return markdown(table.reset_index())


def compiled(results: dict) -> str:
    """Return the table of layers, eager and compiled, over plain norms, eager and compiled."""
    rows = []
    for row in results["compiled"]:
        for which in MAPS_MOVED:
            times = row.get(f"{which}, graph", row[which])
            ratio = times["compiled seconds"] / times["compiled baseline seconds"]
            rows.append(
                {
                    "layer / plain": f"{row['layer']} / {row['baseline']}",
                    **{"map": row["shape name"], "pass": which},
                    "eager / compiled": text(times["over compiled"]),
                    "eager / plain": text(times["over baseline"]),
                    "eager / compiled plain": text(times["over compiled baseline"]),
                    "compiled / compiled plain": f"{ratio:.2f}",
                }
            )
    return markdown(pd.DataFrame(rows))


def activations(results: dict) -> str:
    """Return the table of layers that apply an activation: their time over the pairs' time."""
    rows = [
        {
            "layer / plain": f"{row['layer']} / {row['baseline']}",
            "activation": row["activation"],
            "column": f"{setting}, over {title}",
            "over": row.get("both, graph", row["both"])[f"over {who}"][0],
            "kept": row["saved bytes"]["this"] / row["saved bytes"]["apart"],
        }
        for setting, measured in results.get("activations", {}).items()
        for row in measured
        for who, title in (("baseline", "plain pair"), ("apart", "layer, then activation"))
    ]
    if not rows:
        return ""
    frame = pd.DataFrame(rows)
    names = ["layer / plain", "activation"]
    table = mean(frame.groupby([*names, "column"], sort=False).over, "{:.2f}").unstack(sort=False)
    table["kept, over layer, then activation"] = mean(
        frame.groupby(names, sort=False).kept, "{:.2f}"
    )
    return markdown(table.reset_index())


def steps(results: dict) -> str:
    rows = []
    for row in results["models"]:
        peak = row["peak bytes"][row["norm"]] / row["peak bytes"][row["baseline"]]
        cells = {"training step": f"{row['model']}, {row['norm']} / {row['baseline']}"}
        cells |= {"s": f"{row['seconds']:.2f}", "over plain": text(row["over baseline"], 3)}
        rows.append({**cells, "peak memory": f"{peak:.2f}"})
    return markdown(pd.DataFrame(rows))


def gpu_steps(results: dict) -> str:
    """Return the table of ResNet-50's step on a GPU: milliseconds, and over the plain norm's."""
    measured, commits = results["steps"], results.get("commits of steps", {})
    rows = []
    for norm, baseline in STEP_BASELINES.items():
        if not any(norm in times for times in measured.values()):
            continue
        cells = {}
        for name, times in measured.items():
            way = f"{name}, at {commits[name]}" if name in commits else name
            row, plain = times.get(norm, {}), times.get(baseline, {})
            cells[way] = f"{1e3 * row['seconds']:.1f}" if "seconds" in row else "-"
            if norm != baseline and {"seconds"} <= row.keys() & plain.keys():
                cells[way] += f" ({row['seconds'] / plain['seconds']:.2f})"
        peak = measured.get("eager", {}).get(norm, {}).get("peak bytes")
        cells["peak memory, eager"] = f"{peak / 2**30:.1f} GiB" if peak else "-"
        over = "" if norm == baseline else f" / {baseline}"
        title = f"step of {results['machine'].get('images', '?')} images, ms (over plain)"
        rows.append({title: f"{norm}{over}", **cells})
    return markdown(pd.DataFrame(rows))


def host(results: dict) -> str:
    """Return the table of the host's microseconds without launches, and of launches."""
    rows = [
        {
            "layer": row["layer"],
            "forward, no gradients": f"{row['microseconds']['forward']:.0f}",
            "forward + backward": f"{row['microseconds']['both']:.0f}",
            "over GroupNorm": text(row["over GroupNorm"]),
            "operator": f"{row['microseconds']['operator']:.0f}",
            "its backward": f"{row['microseconds']['operator, backward']:.0f}",
            "launches, forward + backward": "{} + {}".format(*row["launches"]),
        }
        for row in results["rows"]
    ]
    return f"{markdown(pd.DataFrame(rows))}\n\n{about(results)}"


def collect(folder: Path) -> dict:
    """Return the results in a folder of benchmarks.gpu as one benchmark's."""
    results = {"machine": json.loads((folder / "machine.json").read_text()), "rounds": 0}
    results |= {"layers": {}, "compiled": [], "models": [], "steps": {}}
    names = [f"layers, {shape}" for shape in SHAPES]
    names += sorted(file.stem for file in folder.glob("step, *.json"))
    for file in (folder / f"{name}.json" for name in names):
        try:
            found = json.loads(file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            continue  # missing or cut
        if "layers" in found:
            results["rounds"] = found["rounds"]
            for setting, measured in found["layers"].items():
                results["layers"].setdefault(setting, []).extend(measured)
        else:
            row = {key: found[key] for key in ("seconds", "peak bytes")}
            results["steps"].setdefault(found["way"], {})[found["norm"]] = row
    return results


def everything(results: dict) -> str:
    tables = (means, maps, without_c) if results["layers"] else ()
    is_of_gpu = results["machine"]["device"] != "cpu"
    of_gpu = (eager_maps,) if results["layers"] and is_of_gpu else ()
    of_gpu += (gpu_steps,) if results.get("steps") else ()
    texts = (table(results) for table in (about, *tables, activations, compiled, steps, *of_gpu))
    return "\n\n".join(filter(None, texts))


OF_CPU = about, means, short, maps, without_c, activations, compiled, steps
#: Name of a table in the pages -> its function, and the record that it shows.
TABLES = {table.__name__: (table, RECORD) for table in OF_CPU}
TABLES |= {"gpu": (everything, RECORD_OF_GPU), "on_gpu": (on_gpu, RECORD_OF_GPU)}
TABLES |= {"host": (host, RECORD_OF_HOST)}


def documented() -> dict[Path, str]:
    """Return documentation page -> its text with the records' tables in place of the old."""

    def fill(match: re.Match) -> str:
        table, record = TABLES[match[2]]
        return f"{match[1]}\n{table(json.loads(record.read_text()))}\n\n{match[3]}"

    return {page: TABLE.sub(fill, page.read_text("utf-8")) for page in PAGES}


@styled
def chart(results: dict, of_gpu: dict) -> Figure:
    """Plot times over the plain norm's, of layers on maps and of a training step on a GPU.

    A layer has a dot for each map and a bar for their geometric mean; a step has a diamond.
    """
    # No wider: a phone shows the whole chart, and must not shrink its labels.
    figure = Figure(figsize=(3.6, 7.2), layout="constrained")
    layers, steps = figure.subplots(2, height_ratios=(8, 3.6), sharex=True)
    frames = {f"CPU, {name}": (passes(results), name) for name in ("float32", "bfloat16")}
    for mode, ending in MODES.items():
        frames[f"GPU, {mode}"] = passes(of_gpu, ending), "channels last, bfloat16"
    modes = (f"GPU, {mode_of(way)}" for way in of_gpu["steps"])
    colours = dict(zip(dict.fromkeys((*frames, *modes)), OKABE_ITO, strict=False))
    names = list(dict.fromkeys(passes(results)["layer / plain"]))
    for i, (label, (frame, setting)) in enumerate(frames.items()):
        shown = frame[(frame.setting == setting) & (frame["pass"] == "both")]
        options = {"color": colours[label], "linestyle": "none"}
        for name, ratios in shown.groupby("layer / plain")["over baseline"]:
            y = names.index(name) + 0.21 * (i - 1.5)
            layers.plot(ratios, [y] * len(ratios), marker=".", alpha=0.6, **options)
            layers.plot(geometric_mean(ratios), y, marker="|", markersize=9, mew=3, **options)
    for label, colour in colours.items():
        layers.plot([], marker="s", linestyle="none", label=label, color=colour)
    for way, norms in of_gpu["steps"].items():
        for i, (norm, plain) in enumerate(ON_GPU.items()):
            if {norm, plain} <= norms.keys():
                ratio = norms[norm]["seconds"] / norms[plain]["seconds"]
                options = {"color": colours[f"GPU, {mode_of(way)}"], "linestyle": "none"}
                steps.plot(ratio, i, marker="D", markersize=5, **options)
    cpu, gpu = (record["machine"]["commit"][:8] for record in (results, of_gpu))
    title = {"loc": "right", "fontsize": 8.5}
    title_of_layers = f"Eight maps (CPU at {cpu}, GPU at {gpu})"
    layers.set_title(fill(title_of_layers, 48), pad=16, **title)
    ways = ", ".join(f"{way} at {commit_of(way, of_gpu)}" for way in of_gpu["steps"])
    title_of_steps = f"ResNet-50's step on the GPU ({ways})"
    steps.set_title(fill(title_of_steps, 48), **title)
    labels = [name.replace(" / ", " /\n") for name in names]
    layers.set_yticks(range(len(names)), labels=labels)
    steps.set_yticks(range(len(ON_GPU)), labels=[" / ".join(pair) for pair in ON_GPU.items()])
    for axes in (layers, steps):
        axes.axvline(1, color="0.5", linewidth=1)
        axes.set(xscale="log", xlim=(0.15, 5), ylim=(len(axes.get_yticks()) - 0.5, -0.5))
        axes.set_xticks([0.2, 0.5, 1, 2, 4], labels=["0.2", "0.5", "1", "2", "4"])
        axes.set_xticks([], minor=True)
        axes.tick_params(labelbottom=True)
    steps.set_xlabel("time of forward and backward\n(a step: of all), over the plain norm's")
    for x, side, word in ((0.95, "right", "← faster"), (1.05, "left", "slower →")):
        place = {"xycoords": ("data", "axes fraction"), "ha": side, "color": "0.3"}
        layers.annotate(word, (x, 1.01), **place)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def main(path: Path | None = None) -> None:
    """Make results, in a file or in a folder of benchmarks.gpu, the record; write the pages."""
    if path is not None:
        measured = collect(path) if path.is_dir() else json.loads(path.read_text())
        if "rows" in measured:
            RECORD_OF_HOST.write_text(measure.to_json(measured))
        else:
            record, parts = RECORD_OF_GPU, ("layers", "steps")
            if measured["machine"]["device"] == "cpu":
                record, parts = RECORD, ("layers", "activations", "compiled", "models")
            maps = {row["shape name"] for row in chain(*measured["layers"].values())}
            if not all(measured[part] for part in parts) or maps != {*SHAPES}:
                sys.exit(f"error: {path} lacks a part; measure them all on one machine")
            record.write_text(measure.to_json(measured))
    for page, written in documented().items():
        page.write_text(written, "utf-8")
    records = (json.loads(record.read_text()) for record in (RECORD, RECORD_OF_GPU))
    style.save(chart(*records), CHART)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
