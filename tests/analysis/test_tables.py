"""Tables, pictures and summaries of what layers do to images."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("seaborn", reason="needs the extra ilm_plugins[analysis]")
pytest.importorskip("sklearn", reason="needs the extra ilm_plugins[analysis]")

import numpy as np
import pandas as pd
from PIL import Image

from ilm_plugins.analysis import plots
from ilm_plugins.analysis.collect import Ratios, Rescaling
from ilm_plugins.analysis.dynamics import write_dynamics
from ilm_plugins.analysis.tables import embed, share_between_classes, write_ratios, write_rescaling
from ilm_plugins.data.images import Images

NORMALIZERS = ("IN", "LN", "BN")


def images(n, classes=2):
    pixels = [np.full((4, 6, 3), 20 * i, np.uint8) for i in range(n)]
    labels = [i % classes for i in range(n)] if classes else None
    names = [f"{i}.png" for i in range(n)]
    return Images(names, labels, [f"class {i}" for i in range(classes)], pixels)


def ratios(n=6, layers=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(layers, n, 3, generator=generator).double().softmax(2)
    return {f"stage.{i}.norm": Ratios(NORMALIZERS, v, torch.ones(3)) for i, v in enumerate(values)}


def rows(path, **chosen):
    """The rows of a CSV file in which columns have the chosen values."""
    table = pd.read_csv(path).rename(columns={"class": "of_class"})
    for column, value in chosen.items():
        table = table[table[column] == value]
    return table


def names(folder):
    return {path.name for path in folder.iterdir()}


def near(value):
    return pytest.approx(value.tolist(), abs=1e-5)


def test_ratios(tmp_path):
    found = ratios()
    text = write_ratios(tmp_path, found, images(6), "a model")
    pictures = {f"ratios_{what}" for what in ("by_layer", "by_class", "by_image", "spread", "map")}
    tables = {f"{name}.csv" for name in pictures - {"ratios_spread"}}
    assert names(tmp_path) == {f"{name}.png" for name in pictures} | tables | {"summary.txt"}
    for name in pictures:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 200 and len(image.convert("L").getcolors(256)) > 5
    values = torch.stack([r.values for r in found.values()])
    assert f"over layers: {(values - 1 / 3).abs().mean():.4f}" in text
    chosen, of_bn = {"layer": "stage.1.norm", "normalizer": "BN"}, values[1, :, 2]
    row = rows(tmp_path / "ratios_by_layer.csv", **chosen)
    assert row["std"].item() == near(of_bn.std(correction=0))
    assert row["5%"].item() == near(np.quantile(of_bn, 0.05))
    row = rows(tmp_path / "ratios_by_class.csv", **chosen, of_class="class 1")
    assert row["mean"].item() == near(of_bn[1::2].mean())
    assert row.distance.item() == near(of_bn[1::2].mean() - of_bn.mean())
    table = rows(tmp_path / "ratios_by_image.csv")
    distances = (values - values.mean(1, keepdim=True)).square().sum((0, 2)).sqrt()
    assert table["stage.1.norm/BN"].tolist() == near(of_bn)
    assert table.distance.tolist() == near(distances)
    assert f"of all images: {distances.argmax()}.png, {distances.max():.4f}" in text


def test_shares_are_ratios_times_weights(unrendered, tmp_path):
    """As of a layer converted from BN, which computes just this BN."""
    found = {"norm": Ratios(NORMALIZERS, torch.full((2, 3), 1 / 3), torch.tensor([0.0, 0.0, 3.0]))}
    assert "BN share" in write_ratios(tmp_path, found, images(2), "a model")
    assert rows(tmp_path / "ratios_by_layer.csv").share.tolist() == pytest.approx([0, 0, 1])


def test_layers_without_differences_or_without_images(unrendered, tmp_path):
    found = ratios()
    for r in found.values():
        r.values[1] = torch.nan
    found["shared"] = Ratios(("GN", "BN"), torch.tensor([[0.2, 0.8]]).repeat(6, 1), torch.ones(2))
    text = write_ratios(tmp_path, found, images(6, classes=0), "a model")
    assert "the same for all images in shared\n" in text
    assert not any("by_class" in name for name in names(tmp_path))
    assert len(rows(tmp_path / "ratios_by_layer.csv")) == 3 * 3 + 2
    row = rows(tmp_path / "ratios_by_image.csv", image="1.png")
    assert row.distance.item() == 0 and row["stage.0.norm/IN"].isna().all()
    assert not any("shared" in name for name in row)


def test_rescaling(unrendered, tmp_path):
    layers = {
        name: Rescaling(*0.1 * torch.randn(2, 6, groups, dtype=torch.float64))
        for name, groups in (("one", 2), ("other", 4))
    }
    omega = layers["other"].omega
    omega[4] += 3
    text = write_rescaling(tmp_path, layers, images(6), "a model")
    assert "farthest from the mean of all images: 4.png" in text
    moves = omega - omega.mean(0)
    row = rows(tmp_path / "rescaling_by_image.csv", image="4.png")
    assert row["other/omega"].item() == near(moves[4].square().mean().sqrt())
    every = [getattr(v, p) for v in layers.values() for p in ("omega", "beta")]
    squares = sum((v - v.mean(0))[4].square().mean() for v in every)
    assert row.distance.item() == near(squares.sqrt())
    chosen = {"layer": "other", "parameter": "omega"}
    row = rows(tmp_path / "rescaling_by_layer.csv", **chosen)
    assert row["mean"].item() == near(omega.mean())
    row = rows(tmp_path / "rescaling_by_group.csv", **chosen)
    assert row["mean"].tolist() == near(omega.mean(0))
    row = rows(tmp_path / "rescaling_by_class.csv", **chosen, of_class="class 0")
    assert row.distance.item() == near(moves[::2].mean(0).square().mean().sqrt())


def test_dynamics(unrendered, tmp_path, monkeypatch):
    found, steps = [ratios(layers=8, seed=i) for i in range(12)], list(range(1, 13))
    del found[3]["stage.0.norm"]
    drawn, draw = [], plots.dynamics
    monkeypatch.setattr(
        plots, "dynamics", lambda table, *a: drawn.append(table.layer.nunique()) or draw(table, *a)
    )
    text = write_dynamics(tmp_path, steps, found, images(6), "a model")
    assert drawn == [8, 6, 6]  # of all layers, and of six by class and by image
    of_layer = found[1]["stage.2.norm"].values[:, 2]
    chosen = {"epoch": 2, "layer": "stage.2.norm", "normalizer": "BN"}
    row = rows(tmp_path / "dynamics_by_layer.csv", **chosen)
    assert row.value.item() == near(of_layer.mean())
    row = rows(tmp_path / "dynamics_by_class.csv", **chosen, of_class="class 1")
    assert row.value.item() == near(of_layer[1::2].mean())
    row = rows(tmp_path / "dynamics_by_image.csv", **chosen)
    assert sorted(row.value) == near(of_layer[::2].sort().values)  # the class has no more
    row = rows(tmp_path / "dynamics_by_layer.csv", epoch=4, layer="stage.0.norm")
    assert len(row) == 3 and row.value.isna().all()
    epochs = rows(tmp_path / "dynamics_map.csv").epoch.unique()
    assert len(epochs) == 10 and (epochs[0], epochs[-1]) == (1, 12)

    last = torch.cat([r.values for r in found[-1].values()], 1)
    index = pd.MultiIndex.from_arrays([range(6), [0, 1] * 3], names=["image", "class"])
    share = share_between_classes(pd.DataFrame(last.numpy(), index))
    numbers = (last - 1 / 3).abs().mean(), last.std(0, correction=0).mean(), share
    (line,) = (line for line in text.splitlines() if line.startswith("12 "))
    assert line.split()[1:] == [f"{number:.4f}" for number in numbers]


def test_maps():
    labels = np.arange(3).repeat(20)
    values = np.eye(3)[labels] + 0.05 * np.random.default_rng(0).standard_normal((60, 3))
    index = pd.MultiIndex.from_arrays([range(60), labels], names=["image", "class"])
    for method in ("pca", "tsne"):
        assert share_between_classes(embed(pd.DataFrame(values, index), method)) > 0.9
    assert share_between_classes(pd.DataFrame(0 * values, index)) == 0


def test_names_are_shortened_by_what_all_share():
    assert plots.short(["net.stem.gn", "net.stages.0.conv.gn"]) == ["stem", "stages.0.conv"]
    assert plots.short(["a.b"]) == ["a.b"] and plots.short(["0", "0.1"]) == ["0", "0.1"]


def test_no_label_overlaps_another():
    table = pd.DataFrame(
        {"layer": f"layer{i // 10}.{i}.some_conv", "normalizer": n, "epoch": e, "value": 0.1 * e}
        for i in range(19)
        for n in NORMALIZERS
        for e in range(3)
    )
    heat = table[table.epoch == 0].assign(**{"class": "a class", "distance": 1})
    for figure in (
        plots.by_layer(table, "title", 1 / 3),
        plots.boxes(table, "normalizer", "title\nsubject"),
        plots.heat_maps(heat, "normalizer", "title\nsubject"),
        plots.dynamics(table, "epoch", "normalizer", "title\nsubject", {}),
    ):
        figure.draw_without_rendering()
        titles = [ax.title.get_window_extent().y1 for ax in figure.axes if ax.get_title()]
        if figure._suptitle:
            assert figure._suptitle.get_window_extent().y0 >= max(titles) - 1
        for ax in figure.axes:
            ticks = [t for t in ax.get_xticklabels() if t.get_visible() and t.get_text()]
            extents = [tick.get_window_extent() for tick in ticks]
            assert all(one.x1 <= other.x0 + 1 for one, other in pairwise(extents))
        plots.pyplot.close(figure)
