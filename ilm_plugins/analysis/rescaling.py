"""What ILM's omega and beta are, written to a folder: tables, pictures and a summary."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import plots
from .collect import Rescaling
from .images import Images
from .tables import write_csv, write_summary

#: The two parameters, and how they are written in pictures.
SYMBOLS = {"omega": r"$\omega$", "beta": r"$\beta$"}
LEARNED = {"omega": r"$\omega - B_\omega$", "beta": r"$\beta - B_\beta$"}
#: Images of which thumbnails are shown, in each row.
SHOWN = 8


def write_rescaling(
    folder: Path, layers: Mapping[str, Rescaling], images: Images, subject: str
) -> str:
    """Write what omega and beta are, beside B_omega and B_beta and beside their means over images.

    The first is what the auto-encoder adds; the second, here called an image's move, what it adds
    for this image alone. How far it is, is the root of the mean square over key groups.

    ==============================  ==============================================================
    rescaling_by_layer .csv .png    distribution over images and key groups
    rescaling_by_group .csv         distribution of omega - B_omega and beta - B_beta over images
    rescaling_by_class .csv .png    the same over the images and key groups of a class, in the table
                                    alone; and how far its mean move is
    rescaling_by_image .csv         how far an image moves each layer
    rescaling_ranking .csv .png     images by that, mean over layers: the farthest first
    summary.txt                     what is returned
    ==============================  ==============================================================

    By class nothing is written where there are no classes.

    Args:
        folder: is there, and empty.
        layers: see :func:`~.collect.collect_rescaling`; of ``images``, in their order.
        subject: what was looked at, for titles.

    Returns:
        The summary.
    """
    added = {p: {name: getattr(found, p) for name, found in layers.items()} for p in SYMBOLS}
    moves = {p: {name: v - v.nanmean(0) for name, v in of.items()} for p, of in added.items()}
    _by_layer(folder, added, moves, subject)
    if images.labels is not None:
        _by_class(folder, added, moves, images, subject)
    far = {p: torch.stack([rms(v) for v in of.values()], 1) for p, of in moves.items()}
    lines = _summary(added, moves, subject) + _ranking(folder, far, list(layers), images, subject)
    return write_summary(folder, lines)


def rms(values: Tensor) -> Tensor:
    """(N, key groups) -> (N)"""
    return values.square().mean(1).sqrt()


STATISTICS = ("mean", "std", *plots.QUANTILE_NAMES)


def _statistics(values: Tensor) -> tuple[float, ...]:
    present = values[~values.isnan()].double().numpy()
    if not len(present):
        return (np.nan,) * len(STATISTICS)
    quantiles = np.quantile(present, plots.QUANTILES)
    return tuple(map(float, (present.mean(), present.std(), *quantiles)))


def _arrays(of_layers: Mapping[str, Tensor]) -> list[np.ma.MaskedArray]:
    return [np.ma.masked_invalid(values.numpy()) for values in of_layers.values()]


#: Parameter -> layer -> (N, key groups).
Moves = Mapping[str, Mapping[str, Tensor]]


def _by_layer(folder: Path, added: Moves, moves: Moves, subject: str) -> None:
    rows, groups, panels = [], [], {}
    for parameter in SYMBOLS:
        for kind, found in (("from_B", added), ("from_mean", moves)):
            rows += [
                (depth, name, parameter, kind, *_statistics(values))
                for depth, (name, values) in enumerate(found[parameter].items())
            ]
        groups += [
            (depth, name, parameter, group, *_statistics(column))
            for depth, (name, values) in enumerate(added[parameter].items())
            for group, column in enumerate(values.unbind(1))
        ]
        panels[LEARNED[parameter]] = _arrays(added[parameter])
        moved = f"{SYMBOLS[parameter]} - mean over images"
        panels[moved] = _arrays(moves[parameter])
    header = ("depth", "layer", "parameter", "distance", *STATISTICS)
    write_csv(folder / "rescaling_by_layer.csv", header, rows)
    header = ("depth", "layer", "parameter", "key_group", *STATISTICS)
    write_csv(folder / "rescaling_by_group.csv", header, groups)
    title = f"Omega and beta of images and key groups: {plots.BOXES}\n{subject}"
    colours = [plots.OKABE_ITO[i] for i in (0, 0, 1, 1)]
    fig = plots.boxes(list(moves["omega"]), panels, title, colours)
    plots.save(fig, folder / "rescaling_by_layer.png")


def _by_class(folder: Path, added: Moves, moves: Moves, images: Images, subject: str) -> None:
    labels = torch.tensor(images.labels)
    classes = labels.unique().tolist()
    rows, panels = [], {}
    for parameter, of_layers in moves.items():
        columns = []
        for name, values in of_layers.items():
            means = torch.stack([values[labels == i].nanmean(0) for i in classes])
            columns.append(rms(means))
            rows += [
                (
                    name,
                    images.classes[i],
                    parameter,
                    far,
                    *_statistics(added[parameter][name][labels == i]),
                )
                for i, far in zip(classes, columns[-1].tolist(), strict=True)
            ]
        panels[SYMBOLS[parameter]] = np.ma.masked_invalid(torch.stack(columns, 1).numpy())
    header = ("layer", "class", "parameter", "rms", *STATISTICS)
    write_csv(folder / "rescaling_by_class.csv", header, rows)
    fig = plots.heat_maps(
        list(moves["omega"]),
        [images.classes[i] for i in classes],
        panels,
        f"How far classes move omega and beta from their means over all images\n{subject}",
        label="root mean square over key groups",
        row_label="class",
        diverging=False,
    )
    plots.save(fig, folder / "rescaling_by_class.png")


def _summary(added: Moves, moves: Moves, subject: str) -> list[str]:
    width = max(map(len, added["omega"]))
    lines = [
        subject,
        "mean of omega - B_omega and of beta - B_beta, +- deviation of an image from all images",
        f"{'layer':{width}}  {'omega':18}  beta",
    ]
    for name in added["omega"]:
        cells = [
            f"{added[p][name].nanmean():+.4f} +- {moves[p][name].square().nanmean().sqrt():.4f}"
            for p in SYMBOLS
        ]
        lines.append(f"{name:{width}}  {cells[0]:18}  {cells[1]}")
    return lines


def _ranking(
    folder: Path, far: Mapping[str, Tensor], layers: list[str], images: Images, subject: str
) -> list[str]:
    named = [(images.names[i], images.class_of(i)) for i in range(len(images))]
    header = ("image", "class", *(f"{name}/{p}" for p in far for name in layers))
    both = torch.cat(list(far.values()), 1).tolist()
    rows = ((*n, *values) for n, values in zip(named, both, strict=True))
    write_csv(folder / "rescaling_by_image.csv", header, rows)

    rows, shown, lines = [], {}, []
    for parameter, of_layers in far.items():
        scores = of_layers.nanmean(1)
        # An image of which nothing reached any layer has no place among them.
        order = scores.nan_to_num(-1).argsort(descending=True).tolist()
        order = [i for i in order if not scores[i].isnan()]
        for rank, i in enumerate(order, 1):
            most = layers[of_layers[i].nan_to_num(-1).argmax()]
            rows.append((parameter, rank, *named[i], scores[i].item(), most))
        for which, chosen in (("most", order[:SHOWN]), ("least", order[::-1][:SHOWN])):
            shown[f"{SYMBOLS[parameter]} {which}"] = [
                (f"{images.caption(i)}\n{scores[i]:.3f}", images[i]) for i in chosen
            ]
        lines.append(f"{parameter} is moved most by {named[order[0]][0]}: {scores[order[0]]:.4f}")
    header = ("parameter", "rank", "image", "class", "rms", "most_in_layer")
    write_csv(folder / "rescaling_ranking.csv", header, rows)
    title = (
        "Images that move omega and beta most, and least, from their means over all images\n"
        f"(root mean square over key groups, mean over layers)\n{subject}"
    )
    plots.save(plots.thumbnails(shown, title), folder / "rescaling_ranking.png")
    return lines
