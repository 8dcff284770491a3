"""Tables, pictures and summaries of what layers do to images."""

import re
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("seaborn", reason="needs the extra ilm_plugins[analysis]")

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from PIL import Image

from ilm_plugins.experiments.analysis import plots, tables
from ilm_plugins.experiments.analysis.collect import Ratios, Rescaling
from ilm_plugins.experiments.analysis.dynamics import write_dynamics
from ilm_plugins.experiments.analysis.tables import Report, share_between_classes
from ilm_plugins.experiments.data.images import Images

NORMALIZERS, save = ("IN", "LN", "BN"), plots.save


@pytest.fixture
def report(tmp_path, monkeypatch):
    """A report on eight images of two classes, in its own folder; it draws two images."""
    monkeypatch.setattr(tables, "SHOWN", 2)
    (tmp_path / "out").mkdir()
    files = [tmp_path / f"{i}.png" for i in range(8)]
    for i, file in enumerate(files):
        Image.new("RGB", (6, 4), (20 * i,) * 3).save(file)
    images = Images([file.name for file in files], [0, 1] * 4, ["class 0", "class 1"], files)
    return Report(tmp_path / "out", images, "a model")


def ratios(layers=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(layers, 8, 3, generator=generator).double().softmax(2)
    return {f"stage.{i}.norm": Ratios(NORMALIZERS, v, torch.ones(3)) for i, v in enumerate(values)}


def rows(report, name, **chosen):
    table = pd.read_csv(report.folder / f"{name}.csv").rename(columns={"class": "of_class"})
    for column, value in chosen.items():
        table = table[table[column] == value]
    return table


def near(value):
    return pytest.approx(value.tolist(), abs=1e-5)


def test_ratios(unrendered, report, monkeypatch):
    found, skip = ratios(), plots.save
    monkeypatch.setattr(plots, "save", lambda *a: (save if "by_layer" in a[1].name else skip)(*a))
    text = tables.write_ratios(report, found)
    names = {f"ratios_{what}" for what in ("by_layer", "by_class", "by_image", "map")}
    files = {f"{name}.{ending}" for name in names for ending in ("csv", "png")}
    assert {path.name for path in report.folder.iterdir()} == files | {"summary.txt"}
    with Image.open(report.folder / "ratios_by_layer.png") as image:
        assert min(image.size) > 200
        assert len(image.convert("L").getcolors(256)) > 5
    values = torch.stack([r.values for r in found.values()])
    assert f"over layers: {(values - 1 / 3).abs().mean():.4f}" in text
    chosen, of_bn = {"layer": "stage.1.norm", "normalizer": "BN"}, values[1, :, 2]
    row = rows(report, "ratios_by_layer", **chosen)
    assert row["std"].item() == near(of_bn.std(correction=0))
    assert row["5%"].item() == near(np.quantile(of_bn, 0.05))
    row = rows(report, "ratios_by_class", **chosen, of_class="class 1")
    assert row["mean"].item() == near(of_bn[1::2].mean())
    assert row.distance.item() == near(of_bn[1::2].mean() - of_bn.mean())
    table = rows(report, "ratios_by_image")
    distances = (values - values.mean(1, keepdim=True)).square().sum((0, 2)).sqrt()
    assert table["stage.1.norm/BN"].tolist() == near(of_bn)
    assert table.distance.tolist() == near(distances)
    assert f"of all images: {distances.argmax()}.png, {distances.max():.4f}" in text
    assert f"mean over layers: {values.std(1, correction=0).mean():.4f}" in text
    within = sum(8 / 2 * values[:, i::2].var(1, correction=0).sum() for i in (0, 1))
    assert f"between classes: {1 - within / distances.square().sum():.3f}" in text
    assert plots.short([*found, "stage.3.0.norm"]) == ["0", "1", "2", "3.0"]


def test_shares_and_layers_without_differences_or_without_images(unrendered, report, monkeypatch):
    found, drawn, draw = ratios(), [], plots.by_layer
    monkeypatch.setattr(plots, "by_layer", lambda *a: drawn.append((*a, draw(*a))) or drawn[-1][-1])
    report = replace(report, images=replace(report.images, labels=None))
    for r in found.values():
        r.values[1] = torch.nan
    shared = torch.tensor([[0.2, 0.8]]).repeat(8, 1)
    found["shared"] = Ratios(("GN", "BN"), shared, torch.tensor([0.0, 3.0]))
    text = tables.write_ratios(report, found)
    assert "the same for all images in shared\n" in text
    assert re.search(r"BN +0\.8000 +1\.0000\n +GN +0\.2000 +0\.0000\n", text)
    lines = [[y for line in ax.lines for y in line.get_ydata()] for ax in drawn[0][-1].axes.flat]
    assert [max(ys) for ys in lines] == pytest.approx([0.8, 1])
    assert len(rows(report, "ratios_by_layer")) == 3 * 3 + 2
    assert rows(report, "ratios_by_layer", normalizer="GN").share.item() == 0
    row = rows(report, "ratios_by_image", image="1.png")
    assert row.distance.item() == 0
    assert row["stage.0.norm/IN"].isna().all()
    assert not any("shared" in name for name in row)
    far = rows(report, "ratios_by_image").nlargest(2, "distance")
    assert [*drawn[1][2]] == [*far.image]
    assert not (report.folder / "ratios_by_class.csv").exists()


def test_rescaling(unrendered, report):
    layers = {
        name: Rescaling(*0.1 * torch.randn(2, 8, groups, dtype=torch.float64))
        for name, groups in (("one", 2), ("other", 4))
    }
    omega = layers["other"].omega
    omega[4] += 3
    text = tables.write_rescaling(report, layers)
    assert "farthest from the mean of all images: 4.png" in text
    moves = omega - omega.mean(0)
    row = rows(report, "rescaling_by_image", image="4.png")
    assert row["other/omega"].item() == near(moves[4].square().mean().sqrt())
    every = [getattr(v, p) for v in layers.values() for p in ("omega", "beta")]
    squares = sum((v - v.mean(0))[4].square().mean() for v in every)
    assert row.distance.item() == near(squares.sqrt())
    chosen = {"layer": "other", "parameter": "omega"}
    assert rows(report, "rescaling_by_layer", **chosen)["mean"].item() == near(omega.mean())
    assert rows(report, "rescaling_by_group", **chosen)["mean"].tolist() == near(omega.mean(0))
    row = rows(report, "rescaling_by_class", **chosen, of_class="class 0")
    assert row.distance.item() == near(moves[::2].mean(0).square().mean().sqrt())


def test_dynamics(unrendered, report, monkeypatch):
    found, steps = [ratios(layers=8, seed=i) for i in range(12)], list(range(1, 13))
    del found[3]["stage.0.norm"]
    draw = Mock(return_value=SimpleNamespace(figure=plots.pyplot.figure()))
    monkeypatch.setattr(plots, "dynamics", draw)
    text = write_dynamics(report, steps, found, "epoch")
    drawn = [call.args[0].layer.nunique() for call in draw.call_args_list]
    assert drawn == [8, 6, 6]  # of all layers, and of six by class and by image
    of_layer = found[1]["stage.2.norm"].values[:, 2]
    chosen = {"epoch": 2, "layer": "stage.2.norm", "normalizer": "BN"}
    assert rows(report, "dynamics_by_layer", **chosen).value.item() == near(of_layer.mean())
    row = rows(report, "dynamics_by_class", **chosen, of_class="class 1")
    assert row.value.item() == near(of_layer[1::2].mean())
    last = torch.cat([r.values for r in found[-1].values()], 1)
    near_first = (last[::2] - last[::2].mean(0)).square().sum(1).argsort()
    drawn = 2 * near_first[[0, 2, 3]].sort().values  # the nearest, one between and the farthest
    assert rows(report, "dynamics_by_image", **chosen).value.tolist() == near(of_layer[drawn])
    row = rows(report, "dynamics_by_layer", epoch=4, layer="stage.0.norm")
    assert len(row) == 3
    assert row.value.isna().all()
    epochs = rows(report, "dynamics_map").epoch.unique()
    assert len(epochs) == 10
    assert (epochs[0], epochs[-1]) == (1, 12)

    share = share_between_classes(pd.DataFrame(last.numpy(), report.index()))
    numbers = (last - 1 / 3).abs().mean(), last.std(0, correction=0).mean(), share
    (line,) = (line for line in text.splitlines() if line.startswith("12 "))
    assert line.split()[1:] == [f"{number:.4f}" for number in numbers]
    same = {"norm": Ratios(NORMALIZERS, torch.eye(3)[:1].expand(8, 3), torch.ones(3))}  # as SN's
    assert "nan" not in write_dynamics(report, [1], [same], "epoch").lower()


#: Name -> an image of one colour; the names are not in the order of the alphabet.
PIXELS = {name: np.full((4, 6, 3), 50 * i, np.uint8) for i, name in enumerate("cab")}


def shown(axes):
    """The pixels of the image in axes."""
    (image,) = axes.images
    return np.asarray(image.get_array())


def test_the_picture_beside_a_panel_is_of_the_panels_image():
    lines = [(name, "layer", n, 0.5) for name in sorted(PIXELS) for n in NORMALIZERS]
    table = pd.DataFrame(lines, columns=["image", "layer", "normalizer", "value"])
    grid = plots.by_layer(table, "normalizer", PIXELS)
    for axes, (name, pixels) in zip(grid.axes[:, 0], PIXELS.items(), strict=True):
        assert axes.get_title() == name
        (inset,) = axes.child_axes
        assert np.array_equal(shown(inset), pixels)
    plots.pyplot.close(grid.figure)


def test_a_picture_has_the_name_and_the_colour_of_its_images_lines():
    heights = {name: 0.1 * i for i, name in enumerate(PIXELS)}
    table = pd.DataFrame(
        [(s, n, "layer", "IN", heights[n]) for s in (1, 2) for n in sorted(PIXELS)],
        columns=["epoch", "image", "layer", "normalizer", "value"],
    )
    grid = plots.dynamics(table, "epoch", "image", PIXELS)
    (panel,) = grid.axes.flat
    colours = {round(line.get_ydata()[0], 3): line.get_color() for line in panel.lines[:3]}
    pictures = {axes.get_title(): axes for axes in grid.figure.axes if axes.images}
    assert [*pictures] == [*PIXELS]
    for name, axes in pictures.items():
        assert np.array_equal(shown(axes), PIXELS[name])
        found = to_hex(axes.spines["left"].get_edgecolor())
        assert found == to_hex(colours[round(heights[name], 3)])
    plots.pyplot.close(grid.figure)


def test_maps():
    labels = np.arange(3).repeat(20)
    values = np.eye(3)[labels] + 0.05 * np.random.default_rng(0).standard_normal((60, 3))
    index = pd.MultiIndex.from_arrays([range(60), labels], names=["image", "class"])
    for method in ("pca", "tsne"):
        mapped = tables.embed(pd.DataFrame(values, index), method)
        assert share_between_classes(mapped) > 0.9
    assert share_between_classes(pd.DataFrame(0 * values, index)) == 0


def test_a_title_with_two_dollar_signs_is_no_formula(tmp_path):
    points = pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 0.0], "class": ["a$1_$2", "b"]})
    plots.save(plots.scatter(points), tmp_path / "a.png", "cost$1_$2")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_a_name_that_is_no_unicode_is_written(report):
    report.table("names", pd.DataFrame({"image": ["caf\udce9.png"]}))
    assert "caf" in (report.folder / "names.csv").read_text()


def test_pictures_name_their_axes():
    lines = [("c", name, n, "ratio", 0.5) for name in ("a", "b") for n in NORMALIZERS]
    table = pd.DataFrame(lines, columns=["class", "layer", "normalizer", "panel", "value"])
    table["distance"] = table["value"]
    points = pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 0.0], "class": ["a", "b"]})
    drawn = {
        "ratio": plots.by_layer(table, "normalizer"),
        "class": plots.heat_maps(table, "normalizer"),
        "dimension 2": plots.scatter(points),
    }
    for label, grid in drawn.items():
        assert grid.axes[0, 0].get_ylabel() == label
        assert grid.axes[-1, 0].get_xlabel()
        plots.pyplot.close(grid.figure)
