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
PICTURES = ("by_class", "by_image", "spread", "map")
QUANTILES = ("min", "5%", "25%", "50%", "75%", "95%", "max")


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
    table = pd.read_csv(path)
    for column, value in chosen.items():
        table = table[table[column] == value]
    return table


def check_statistics(row, values):
    assert row["mean"].item() == pytest.approx(values.mean().item(), abs=1e-5)
    assert row["std"].item() == pytest.approx(values.std(correction=0).item(), abs=1e-5)
    expected = np.quantile(values, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))
    assert row[[*QUANTILES]].to_numpy()[0] == pytest.approx(expected, abs=1e-5)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_ratios(tmp_path):
    found = ratios()
    text = write_ratios(tmp_path, found, images(6), "a model")
    pictures = {f"ratios_{what}" for what in (*PICTURES, "by_layer")}
    tables = {f"{name}.csv" for name in pictures - {"ratios_spread"}}
    assert names(tmp_path) == {f"{name}.png" for name in pictures} | tables | {"summary.txt"}
    for name in pictures:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 200 and len(image.convert("L").getcolors(256)) > 5
    assert (tmp_path / "summary.txt").read_text() == text + "\n"

    values = torch.stack([r.values for r in found.values()])
    assert f"over layers: {(values - 1 / 3).abs().mean():.4f}" in text
    chosen = {"layer": "stage.1.norm", "normalizer": "BN"}
    check_statistics(rows(tmp_path / "ratios_by_layer.csv", **chosen), values[1, :, 2])
    row = rows(tmp_path / "ratios_by_class.csv", **chosen, **{"class": "class 1"})
    check_statistics(row, values[1, 1::2, 2])
    difference = values[1, 1::2, 2].mean() - values[1, :, 2].mean()
    assert row.distance.item() == pytest.approx(difference.item(), abs=1e-5)
    table = rows(tmp_path / "ratios_by_image.csv")
    distances = (values - values.mean(1, keepdim=True)).square().sum((0, 2)).sqrt()
    assert table.distance.tolist() == pytest.approx(distances.tolist(), abs=1e-5)
    assert f"of all images: {distances.argmax()}.png, {distances.max():.4f}" in text
    assert rows(tmp_path / "ratios_map.csv").x.nunique() == 6


def test_shares_are_ratios_times_weights(unrendered, tmp_path):
    """As of a layer converted from BN, which computes just this BN."""
    found = {"norm": Ratios(NORMALIZERS, torch.full((2, 3), 1 / 3), torch.tensor([0.0, 0.0, 3.0]))}
    text = write_ratios(tmp_path, found, images(2), "a model")
    assert rows(tmp_path / "ratios_by_layer.csv").share.tolist() == pytest.approx([0, 0, 1])
    assert "BN share" in text


def test_layers_whose_ratios_all_images_share_are_only_in_the_table_by_layer(unrendered, tmp_path):
    shared = Ratios(("IN", "BN"), torch.tensor([[0.2, 0.8]]).repeat(6, 1), torch.ones(2))
    text = write_ratios(tmp_path, {**ratios(), "shared": shared}, images(6), "a model")
    assert "the same for all images in shared\n" in text
    assert len(rows(tmp_path / "ratios_by_layer.csv")) == 3 * 3 + 2
    assert not any("shared" in name for name in rows(tmp_path / "ratios_by_image.csv"))


def test_images_without_classes_or_of_which_nothing_reached_a_layer(unrendered, tmp_path):
    found = ratios()
    found["stage.2.norm"] = Ratios(("GN",), torch.rand(6, 1), torch.ones(1))
    for r in found.values():
        r.values[1] = torch.nan
    write_ratios(tmp_path, found, images(6, classes=0), "a model")
    assert not any("by_class" in name for name in names(tmp_path))
    row = rows(tmp_path / "ratios_by_image.csv", image="1.png")
    assert row.distance.item() == 0 and row["stage.0.norm/IN"].isna().all()
    row = rows(tmp_path / "ratios_by_layer.csv", normalizer="GN")
    check_statistics(row, found["stage.2.norm"].values[[0, 2, 3, 4, 5], 0])


def test_rescaling(unrendered, tmp_path):
    generator = torch.Generator().manual_seed(0)
    layers = {
        f"stage.{i}.norm": Rescaling(*0.1 * torch.randn(2, 6, groups, generator=generator))
        for i, groups in enumerate((2, 4))
    }
    layers["stage.1.norm"].omega[4] += 3
    text = write_rescaling(tmp_path, layers, images(6), "a model")
    assert {f"rescaling_{what}.png" for what in PICTURES} <= names(tmp_path)
    assert "farthest from the mean of all images: 4.png" in text

    omega = layers["stage.1.norm"].omega
    moves = omega - omega.mean(0)
    row = rows(tmp_path / "rescaling_by_image.csv", image="4.png")
    expected = moves[4].square().mean().sqrt().item()
    assert row["stage.1.norm/omega"].item() == pytest.approx(expected, abs=1e-5)
    every = [getattr(v, p) for v in layers.values() for p in ("omega", "beta")]
    squares = sum((v - v.mean(0))[4].square().mean().item() for v in every)
    assert row.distance.item() == pytest.approx(squares**0.5, abs=1e-5)
    chosen = {"layer": "stage.1.norm", "parameter": "omega"}
    check_statistics(rows(tmp_path / "rescaling_by_layer.csv", **chosen), omega)
    for group, column in enumerate(omega.unbind(1)):
        row = rows(tmp_path / "rescaling_by_group.csv", **chosen, key_group=group)
        check_statistics(row, column)
    row = rows(tmp_path / "rescaling_by_class.csv", **chosen, **{"class": "class 0"})
    expected = moves[::2].mean(0).square().mean().sqrt().item()
    assert row.distance.item() == pytest.approx(expected, abs=1e-5)


def test_dynamics(tmp_path):
    found = [ratios(seed=i) for i in range(3)]
    text = write_dynamics(tmp_path, [1, 5, 20], found, images(6), "a model")
    kinds = {f"dynamics_{what}" for what in ("by_layer", "by_class", "by_image", "map")}
    files = {f"{name}.{suffix}" for name in kinds for suffix in ("csv", "png")}
    assert names(tmp_path) == files | {"summary.txt"}
    of_layer = found[1]["stage.2.norm"].values[:, 2]
    chosen = {"epoch": 5, "layer": "stage.2.norm", "normalizer": "BN"}
    row = rows(tmp_path / "dynamics_by_layer.csv", **chosen)
    assert row.value.item() == pytest.approx(of_layer.mean().item(), abs=1e-5)
    row = rows(tmp_path / "dynamics_by_class.csv", **chosen, **{"class": "class 1"})
    assert row.value.item() == pytest.approx(of_layer[1::2].mean().item(), abs=1e-5)
    assert len(rows(tmp_path / "dynamics_map.csv")) == 3 * 6
    # Three of the first class, which has no more.
    row = rows(tmp_path / "dynamics_by_image.csv", **chosen).set_index("image").value
    assert row["4.png"] == pytest.approx(of_layer[4].item(), abs=1e-5) and len(row) == 3

    last = torch.cat([r.values for r in found[2].values()], 1)
    distance = (last - 1 / 3).abs().mean()
    index = pd.MultiIndex.from_arrays([range(6), [0, 1] * 3], names=["image", "class"])
    share = share_between_classes(pd.DataFrame(last.numpy(), index))
    deviation = last.std(0, correction=0).mean()
    (line,) = (line for line in text.splitlines() if line.startswith("20 "))
    assert line.split() == ["20", f"{distance:.4f}", f"{deviation:.4f}", f"{share:.4f}"]


def test_dynamics_of_many_checkpoints_where_a_layer_is_missing(unrendered, tmp_path, monkeypatch):
    drawn = []
    draw = plots.dynamics
    monkeypatch.setattr(
        plots, "dynamics", lambda table, *a: drawn.append(table.layer.nunique()) or draw(table, *a)
    )
    found = [ratios(4, 8, seed=i) for i in range(12)]
    del found[3]["stage.0.norm"]
    write_dynamics(tmp_path, list(range(1, 13)), found, images(4), "a model")
    epochs = rows(tmp_path / "dynamics_map.csv").epoch.unique()
    assert len(epochs) == 10 and (epochs[0], epochs[-1]) == (1, 12)
    assert drawn == [8, 6, 6]  # of all layers, and of six by class and by image
    row = rows(tmp_path / "dynamics_by_layer.csv", epoch=4, layer="stage.0.norm")
    assert len(row) == 3 and row.value.isna().all()


def test_maps():
    labels = np.arange(3).repeat(20)
    values = np.eye(3)[labels] + 0.05 * np.random.default_rng(0).standard_normal((60, 3))
    index = pd.MultiIndex.from_arrays([range(60), labels], names=["image", "class"])
    points = pd.DataFrame(values, index)
    for method in ("pca", "tsne"):
        assert share_between_classes(embed(points, method)) > 0.9
    squares = embed(points, "pca").var(ddof=0)
    expected = np.linalg.svd(values - values.mean(0))[1][:2] ** 2 / 60
    assert squares.tolist() == pytest.approx(expected.tolist())
    assert share_between_classes(points * 0) == 0


def test_names_are_shortened_by_what_all_share():
    assert plots.short(["net.stem.gn", "net.stages.0.conv.gn"]) == ["stem", "stages.0.conv"]
    assert plots.short(["a.b"]) == ["a.b"] and plots.short(["0", "0.1"]) == ["0", "0.1"]


def test_no_label_overlaps_another():
    values = np.random.default_rng(0).random((19, 3, 3))
    table = pd.DataFrame(
        {"layer": f"layer{i // 10}.{i}.some_conv", "normalizer": n, "epoch": e, "value": v}
        for i, of_layer in enumerate(values)
        for n, of_one in zip(NORMALIZERS, of_layer, strict=True)
        for e, v in enumerate(of_one)
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
            assert all(
                a.get_window_extent().x1 <= b.get_window_extent().x0 + 1 for a, b in pairwise(ticks)
            )
        plots.pyplot.close(figure)
