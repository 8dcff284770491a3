"""What ILM's omega and beta are, written to a folder: tables, pictures and a summary."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import plots
from .collect import Rescaling
from .images import Images
from .tables import write_csv

#: The two parameters, and how they are written in pictures.
SYMBOLS = {"omega": r"$\omega - B_\omega$", "beta": r"$\beta - B_\beta$"}
#: Images of which thumbnails are shown, in each row.
SHOWN = 8


def write_rescaling(
    folder: Path, layers: Mapping[str, Rescaling], images: Images, subject: str
) -> str:
    """Write how far omega and beta are from B_omega and B_beta, here called moves.

    ==============================  ==============================================================
    rescaling_by_layer .csv .png    the moves' distribution over images and key groups
    rescaling_by_group .csv         the same by key group, over images
    rescaling_by_class .csv .png    how far a class's mean move is from that of all images
    rescaling_by_image .csv         each image's move in each layer
    rescaling_ranking .csv .png     images by their move, mean over layers: the largest first
    summary.txt                     what is returned
    ==============================  ==============================================================

    How far is the root of the mean square over key groups. By class nothing is written where there
    are no classes.

    Args:
        folder: is there, and empty.
        layers: see :func:`~.collect.collect_rescaling`; of ``images``, in their order.
        subject: what was looked at, for titles.

    Returns:
        The summary.
    """
    moves = {p: {name: getattr(found, p) for name, found in layers.items()} for p in SYMBOLS}
    _by_layer(folder, moves, subject)
    if images.labels is not None:
        _by_class(folder, moves, images, subject)
    sizes = {p: torch.stack([rms(v) for v in of.values()], 1) for p, of in moves.items()}
    lines = [*_summary(moves, subject), *_ranking(folder, sizes, list(layers), images, subject)]
    text = "\n".join(lines)
    (folder / "summary.txt").write_text(text + "\n", encoding="utf-8")
    return text


def rms(values: Tensor) -> Tensor:
    """(N, key groups) -> (N)"""
    return values.square().mean(1).sqrt()


def _statistics(values: Tensor) -> tuple[float, ...]:
    present = values[~values.isnan()].double().numpy()
    mean, std = present.mean(), present.std()
    return tuple(
        map(float, (mean, std, *np.quantile(present, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))))
    )


STATISTICS = ("mean", "std", "min", "q05", "q25", "q50", "q75", "q95", "max")


def _between(values: Tensor) -> float:
    """Standard deviation between images, mean over key groups."""
    return float(np.nanstd(values.numpy(), 0).mean())


def _by_layer(folder: Path, moves: Mapping[str, Mapping[str, Tensor]], subject: str) -> None:
    rows, groups = [], []
    for parameter, of_layers in moves.items():
        for depth, (name, values) in enumerate(of_layers.items()):
            rows.append((depth, name, parameter, _between(values), *_statistics(values)))
            groups += [
                (depth, name, parameter, group, *_statistics(column))
                for group, column in enumerate(values.unbind(1))
            ]
    header = ("depth", "layer", "parameter", "std_between_images", *STATISTICS)
    write_csv(folder / "rescaling_by_layer.csv", header, rows)
    header = ("depth", "layer", "parameter", "key_group", *STATISTICS)
    write_csv(folder / "rescaling_by_group.csv", header, groups)
    panels = {SYMBOLS[p]: [v.numpy() for v in of.values()] for p, of in moves.items()}
    title = (
        "Omega and beta of images and key groups: quartiles, whiskers from the 5th to the 95th "
        f"percentile\n{subject}"
    )
    names = list(moves["omega"])
    fig = plots.boxes(names, panels, title, (plots.OKABE_ITO[0], plots.OKABE_ITO[1]))
    plots.save(fig, folder / "rescaling_by_layer.png")


def _by_class(
    folder: Path, moves: Mapping[str, Mapping[str, Tensor]], images: Images, subject: str
) -> None:
    labels = torch.tensor(images.labels)
    classes = labels.unique().tolist()
    rows, panels = [], {}
    for parameter, of_layers in moves.items():
        columns = []
        for name, values in of_layers.items():
            overall = values.nanmean(0)
            means = torch.stack([values[labels == i].nanmean(0) for i in classes])
            columns.append(rms(means - overall))
            rows += [
                (name, images.classes[i], parameter, mean.mean().item(), difference.item())
                for i, mean, difference in zip(classes, means, columns[-1], strict=True)
            ]
        panels[SYMBOLS[parameter]] = torch.stack(columns, 1).numpy()
    header = ("layer", "class", "parameter", "mean", "rms_from_mean_of_all")
    write_csv(folder / "rescaling_by_class.csv", header, rows)
    fig = plots.heat_maps(
        list(moves["omega"]),
        [images.classes[i] for i in classes],
        panels,
        f"How far classes move omega and beta apart\n{subject}",
        label="class mean - mean of all images,\nroot mean square over key groups",
        row_label="class",
        diverging=False,
    )
    plots.save(fig, folder / "rescaling_by_class.png")


def _summary(moves: Mapping[str, Mapping[str, Tensor]], subject: str) -> list[str]:
    width = max(map(len, moves["omega"]))
    lines = [
        subject,
        "moves: omega - B_omega and beta - B_beta; mean, and standard deviation between images",
        f"{'layer':{width}}  {'omega':18}  beta",
    ]
    for name in moves["omega"]:
        cells = [
            f"{moves[p][name].nanmean().item():+.4f} +- {_between(moves[p][name]):.4f}"
            for p in SYMBOLS
        ]
        lines.append(f"{name:{width}}  {cells[0]:18}  {cells[1]}")
    return lines


def _ranking(
    folder: Path, sizes: Mapping[str, Tensor], layers: list[str], images: Images, subject: str
) -> list[str]:
    named = [(images.names[i], images.class_of(i)) for i in range(len(images))]
    header = ("image", "class", *(f"{name}/{p}" for p in sizes for name in layers))
    both = torch.cat(list(sizes.values()), 1).tolist()
    rows = ((*n, *values) for n, values in zip(named, both, strict=True))
    write_csv(folder / "rescaling_by_image.csv", header, rows)

    rows, shown, lines = [], {}, []
    for parameter, of_layers in sizes.items():
        scores = of_layers.nanmean(1)
        order = scores.nan_to_num(-1).argsort(descending=True).tolist()
        for rank, i in enumerate(order, 1):
            most = layers[of_layers[i].nan_to_num(-1).argmax()]
            rows.append((parameter, rank, *named[i], scores[i].item(), most))
        shown[f"moving {parameter} most"] = [
            (
                f"{' '.join(filter(None, (named[i][1], Path(named[i][0]).name)))}\n{scores[i]:.3f}",
                images[i],
            )
            for i in order[:SHOWN]
        ]
        shown[f"moving {parameter} least"] = [
            (
                f"{' '.join(filter(None, (named[i][1], Path(named[i][0]).name)))}\n{scores[i]:.3f}",
                images[i],
            )
            for i in order[::-1][:SHOWN]
        ]
        first = order[0]
        lines.append(f"{parameter} is moved most by {named[first][0]}: {scores[first]:.4f}")
    header = ("parameter", "rank", "image", "class", "move", "most_in_layer")
    write_csv(folder / "rescaling_ranking.csv", header, rows)
    title = f"Images that move omega and beta most\n{subject}"
    plots.save(plots.thumbnails(shown, title), folder / "rescaling_ranking.png")
    return lines
