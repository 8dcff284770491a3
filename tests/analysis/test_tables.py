"""Tables, pictures and summaries of what layers do to images."""

from itertools import pairwise, product

import pytest
import torch

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
pytest.importorskip("sklearn", reason="maps of images need scikit-learn")

import numpy as np
from PIL import Image

from ilm_plugins.analysis import plots
from ilm_plugins.analysis.collect import Ratios, Rescaling
from ilm_plugins.analysis.dynamics import write_dynamics
from ilm_plugins.analysis.tables import (
    embed,
    merge_names,
    share_between_classes,
    write_comparison,
    write_ratios,
    write_rescaling,
)
from ilm_plugins.data.images import Images
from ilm_plugins.errors import OptionError, UserError
from runs import read_csv

NORMALIZERS = ("IN", "LN", "BN")
PICTURES = ("by_class", "by_image", "spread", "map")


def images(n, classes=2):
    pixels = [np.full((4, 6, 3), 20 * i, np.uint8) for i in range(n)]
    labels = [i % classes for i in range(n)] if classes else None
    names = [f"{i}.png" for i in range(n)]
    return Images(names, labels, [f"class {i}" for i in range(classes)], pixels)


def ratios(n=6, layers=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"stage.{i}.norm": Ratios(
            NORMALIZERS, torch.randn(n, 3, generator=generator).double().softmax(1)
        )
        for i in range(layers)
    }


def rescaling(n=6):
    generator = torch.Generator().manual_seed(0)
    return {
        f"stage.{i}.norm": Rescaling(*0.1 * torch.randn(2, n, groups, generator=generator))
        for i, groups in enumerate((2, 4))
    }


def table(path, **chosen):
    """The rows of a CSV file in which columns have the chosen values."""
    return [row for row in read_csv(path) if all(row[column] == v for column, v in chosen.items())]


def check_pictures(folder, *names):
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            assert image.format == "PNG" and min(image.size) > 200
            assert len(image.convert("L").getcolors(256)) > 5


def check_statistics(row, values):
    assert float(row["mean"]) == pytest.approx(values.mean().item(), abs=1e-5)
    assert float(row["std"]) == pytest.approx(values.std(correction=0).item(), abs=1e-5)
    assert float(row["q50"]) == pytest.approx(np.median(values), abs=1e-5)
    quantiles = [float(row[name]) for name in plots.QUANTILE_NAMES]
    assert all(low <= high for low, high in pairwise(quantiles))


@pytest.mark.parametrize("ratios", [np.full((3, 4), 1 / 3), np.eye(3, 4)])
def test_no_ratio_is_drawn_at_the_edge(ratios):
    named = dict(zip(("IN", "LN", "BN"), ratios, strict=True))
    layers, image = [f"layer{i}" for i in range(4)], np.zeros((8, 8, 3), np.uint8)
    spread = np.zeros(4)
    drawn = plots.by_layer(layers, {"a": {k: (v, spread) for k, v in named.items()}}, "title")
    for fig in (drawn, plots.strips(layers, [("b", image, named)], "title", np.full(4, 1 / 3))):
        ax = fig.axes[-1]
        heights = np.concatenate([line.get_ydata() for line in ax.lines])
        inside = ax.transAxes.inverted().transform(
            ax.transData.transform([(0, y) for y in heights])
        )
        assert len(heights) > 12 and (np.abs(inside[:, 1] - 0.5) < 0.48).all()


def test_images_of_any_width_are_drawn_whole():
    shapes, named = [(8, 8), (8, 20), (6, 12)], {"IN": np.ones(2), "BN": np.zeros(2)}
    images = [("b", np.zeros((*shape, 3), np.uint8), named) for shape in shapes]
    fig = plots.strips(["one", "two"], images, "title")
    assert [ax.get_xlim() for ax in fig.axes[::2]] == [(-0.5, w - 0.5) for _, w in shapes]
    assert len({ax.get_xlim() for ax in fig.axes[1::2]}) == 1
    shown = [ax.xaxis.get_tick_params()["labelbottom"] for ax in fig.axes[1::2]]
    assert shown == [False, False, True]


def test_the_dashed_line_is_at_the_uniform_ratio_of_each_layer():
    """The first layer has three normalizers, the second two."""
    ratios = {
        "IN": np.ma.masked_array([[0.2, 0.5]] * 3),
        "LN": np.ma.masked_array([[0.3, 0.0]] * 3, mask=[[False, True]] * 3),
        "BN": np.ma.masked_array([[0.5, 0.5]] * 3),
    }
    layers, first = ["a", "b"], {name: (v[0], v[0] * 0) for name, v in ratios.items()}
    (ax,) = plots.by_layer(layers, {"images": first}, "title").axes
    (dashed,) = (line for line in ax.lines if line.get_label() == "uniform")
    assert dashed.get_ydata().tolist() == [1 / 3, 1 / 3, 1 / 2, 1 / 2]
    assert dashed.get_xdata().tolist() == [-0.5, 0.5, 0.5, 1.5]
    fig = plots.dynamics(layers, [1, 2, 3], ratios, "title", "epoch")
    assert [ax.lines[-1].get_ydata()[0] for ax in fig.axes] == [1 / 3, 1 / 2]


def test_ratios(tmp_path):
    found = ratios()
    text = write_ratios(tmp_path, found, images(6), "a model")
    pictures = {f"ratios_{what}" for what in (*PICTURES, "by_layer")}
    tables = pictures - {"ratios_spread"}
    names = {f"{name}.png" for name in pictures} | {f"{name}.csv" for name in tables}
    assert {p.name for p in tmp_path.iterdir()} == {*names, "summary.txt"}
    check_pictures(tmp_path, *pictures)
    assert (tmp_path / "summary.txt").read_text() == text + "\n"

    values = torch.stack([r.values for r in found.values()])
    assert f"over 3 layers: {(values - 1 / 3).abs().mean():.4f}" in text
    rows = table(tmp_path / "ratios_by_layer.csv")
    assert len(rows) == 9
    for row, of_layer in zip(rows, values.permute(0, 2, 1).flatten(0, 1), strict=True):
        check_statistics(row, of_layer)
    assert len(table(tmp_path / "ratios_by_class.csv")) == 3 * 2 * 3
    chosen = {"layer": "stage.1.norm", "class": "class 1", "normalizer": "BN"}
    (row,) = table(tmp_path / "ratios_by_class.csv", **chosen)
    check_statistics(row, values[1, 1::2, 2])
    difference = values[1, 1::2, 2].mean() - values[1, :, 2].mean()
    assert float(row["distance"]) == pytest.approx(difference.item(), abs=1e-5)
    rows = table(tmp_path / "ratios_by_image.csv")
    assert [r["image"] for r in rows] == [f"{i}.png" for i in range(6)]
    assert float(rows[4]["stage.2.norm/LN"]) == pytest.approx(values[2, 4, 1].item(), abs=1e-5)
    distances = (values - values.mean(1, keepdim=True)).square().sum((0, 2)).sqrt()
    assert [float(r["distance"]) for r in rows] == pytest.approx(distances.tolist(), abs=1e-5)
    assert f"of all images: {distances.argmax()}.png, {distances.max():.4f}" in text
    rows = table(tmp_path / "ratios_map.csv")
    assert len(rows) == 6 and len({row["x"] for row in rows}) == 6


def test_without_classes_nothing_is_written_by_class(unrendered, tmp_path):
    write_ratios(tmp_path, ratios(), images(6, classes=0), "a model")
    names = {p.stem.partition("_")[2] for p in tmp_path.iterdir()}
    assert names >= {*PICTURES} - {"by_class"} and "by_class" not in names


def test_ratios_that_all_images_share_have_one_table(unrendered, tmp_path):
    shared = Ratios(("IN", "BN"), torch.tensor([[0.2, 0.8]]).repeat(5, 1))
    text = write_ratios(tmp_path, {"a.mean": shared, "a.var": shared}, images(5), "a model")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"ratios_by_layer.csv", "ratios_by_layer.png", "summary.txt"}
    assert "the same for all images" in text and "over 1 layer: 0.3000" in text


def test_layers_whose_ratios_all_images_share_are_named(unrendered, tmp_path):
    shared = Ratios(NORMALIZERS, torch.tensor([[0.2, 0.7, 0.1]]).repeat(6, 1))
    text = write_ratios(tmp_path, {**ratios(), "a.shared": shared}, images(6), "a model")
    assert "as their ratios are the same for all images: a.shared\n" in text
    assert len(table(tmp_path / "ratios_by_layer.csv")) == 12
    assert not any("a.shared" in name for name in table(tmp_path / "ratios_by_image.csv")[0])


def test_layers_with_other_normalizers_and_missing_images(unrendered, tmp_path):
    found = ratios(6, 2)
    found["stage.2.norm"] = Ratios(("GN", "BN"), torch.rand(6, 2).double().softmax(1))
    found["stage.0.norm"].values[0] = torch.nan
    text = write_ratios(tmp_path, found, images(6), "a model")
    seen = [found["stage.0.norm"].values[1:], *(r.values for r in list(found.values())[1:])]
    deviation = torch.cat([values.std(0, correction=0) for values in seen]).mean()
    assert f"between images, mean over layers: {deviation:.4f}" in text
    assert table(tmp_path / "ratios_by_image.csv")[0]["stage.0.norm/IN"] == ""
    chosen = {"layer": "stage.0.norm", "class": "class 0", "normalizer": "IN"}
    (row,) = table(tmp_path / "ratios_by_class.csv", **chosen)
    check_statistics(row, found["stage.0.norm"].values[2::2, 0])
    (row,) = table(tmp_path / "ratios_by_layer.csv", normalizer="GN")
    assert row["layer"] == "stage.2.norm"


def test_an_image_of_which_nothing_reached_a_layer_is_mapped_to_the_mean(unrendered, tmp_path):
    found = ratios(6)
    for r in found.values():
        r.values[1] = torch.nan
    write_ratios(tmp_path, found, images(6), "a model")
    (row,) = table(tmp_path / "ratios_map.csv", image="1.png")
    assert float(row["x"]) == pytest.approx(0, abs=1e-9) == pytest.approx(float(row["y"]), abs=1e-9)
    (row,) = table(tmp_path / "ratios_by_image.csv", image="1.png")
    assert float(row["distance"]) == 0


def test_one_or_two_images_have_no_map(unrendered, tmp_path):
    write_ratios(tmp_path, ratios(2), images(2), "a model")
    assert not (tmp_path / "ratios_map.csv").exists()
    assert (tmp_path / "ratios_by_image.png").exists()


DYNAMICS = ("by_layer", "by_class", "by_image", "map")


def dynamics(folder, steps, found, **options):
    """Write the report on ratios of images of two classes."""
    n = len(next(iter(found[0].values())).values)
    return write_dynamics(folder, steps, found, images(n), "a model", **options)


def test_dynamics(tmp_path):
    found = [ratios(6, 3, seed=i) for i in range(3)]
    text = dynamics(tmp_path, [1, 5, 20], found)
    check_pictures(tmp_path, *(f"dynamics_{what}" for what in DYNAMICS))
    rows = table(tmp_path / "dynamics_by_layer.csv")
    assert len(rows) == 3 * 3 * 3 and {row["epoch"] for row in rows} == {"1", "5", "20"}
    of_layer = found[1]["stage.2.norm"].values
    chosen = {"epoch": "5", "layer": "stage.2.norm", "normalizer": "BN"}
    (row,) = table(tmp_path / "dynamics_by_layer.csv", **chosen)
    assert float(row["mean"]) == pytest.approx(of_layer[:, 2].mean().item(), abs=1e-5)
    (row,) = table(tmp_path / "dynamics_by_class.csv", **chosen, **{"class": "class 1"})
    assert float(row["ratio"]) == pytest.approx(of_layer[1::2, 2].mean().item(), abs=1e-5)
    assert len(table(tmp_path / "dynamics_map.csv")) == 3 * 6

    # Of the first class, in the order of the distance from its mean at the last checkpoint.
    last = torch.cat([r.values for r in found[2].values()], 1)
    far = (last[::2] - last[::2].mean(0)).square().sum(1).argsort() * 2
    names = [f"class 0 {i}.png" for i in far.tolist()]
    rows = table(tmp_path / "dynamics_by_image.csv", **chosen)
    assert [row["image"] for row in rows] == names
    assert [float(row["ratio"]) for row in rows] == pytest.approx(
        of_layer[far, 2].tolist(), abs=1e-5
    )

    lines = text.splitlines()
    distance = np.mean([r.distance for r in found[2].values()])
    share = share_between_classes(last.numpy(), [0, 1] * 3)
    deviation = last.std(0, correction=0).mean()
    assert lines[4].split() == ["20", f"{distance:.4f}", f"{deviation:.4f}", f"{share:.3f}"]
    first = found[2]["stage.0.norm"].values[:, 0]
    assert lines[5].split() == ["epoch", "20", "class", "0", "class", "1"]
    of_classes = [f"{first[i::2].mean():.3f}" for i in (0, 1)]
    assert lines[6].split() == ["stage.0.norm", "IN", *of_classes]


@pytest.mark.parametrize("embedding", ["pca", "tsne"])
def test_maps_are_of_ten_checkpoints_from_the_first_to_the_last(embedding, unrendered, tmp_path):
    found = [ratios(6, 2, seed=i) for i in range(12)]
    dynamics(tmp_path, list(range(1, 13)), found, embedding=embedding)
    epochs = list(dict.fromkeys(row["epoch"] for row in table(tmp_path / "dynamics_map.csv")))
    assert len(epochs) == 10 and (epochs[0], epochs[-1]) == ("1", "12")
    rows = table(tmp_path / "dynamics_map.csv", epoch="12")
    moves = torch.cat([r.values for r in found[-1].values()], 1).numpy()
    expected, _ = embed(moves - moves.mean(0), embedding)
    assert [float(row["x"]) for row in rows] == pytest.approx(expected[:, 0].tolist(), rel=1e-3)


def test_all_layers_are_drawn_over_the_training_and_six_by_class(unrendered, tmp_path, monkeypatch):
    drawn = {}
    for name in ("dynamics", "dynamics_of"):

        def count(layers, *_, name=name, **__):
            drawn[name] = len(layers)

        monkeypatch.setattr(plots, name, count)
    dynamics(tmp_path, [1, 2], [ratios(4, 53, seed=i) for i in range(2)])
    assert drawn == {"dynamics": 53, "dynamics_of": 6}


def test_dynamics_of_ratios_that_all_images_share_are_by_layer_alone(unrendered, tmp_path):
    shared = Ratios(("IN", "BN"), torch.tensor([[0.2, 0.8]]).repeat(5, 1))
    text = dynamics(tmp_path, [3], [{"a.mean": shared, "a.var": shared}])
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"dynamics_by_layer.csv", "dynamics_by_layer.png", "summary.txt"}
    assert text.splitlines()[-1].split() == ["3", "0.3000"]


def test_dynamics_of_images_without_classes(unrendered, tmp_path):
    found = [ratios(4, 2)]
    text = write_dynamics(tmp_path, [1], found, images(4, classes=0), "a model", "iteration")
    names = {p.stem for p in tmp_path.iterdir()}
    assert names == {"summary", *(f"dynamics_{what}" for what in DYNAMICS)} - {"dynamics_by_class"}
    assert {row["class"] for row in table(tmp_path / "dynamics_map.csv")} == {""}
    assert text.splitlines()[1].endswith("standard deviation between images")


def test_dynamics_of_layers_that_saw_nothing_at_some_checkpoint(unrendered, tmp_path):
    """In the order of depth, of whichever checkpoint has them."""
    whole = ratios(4, 4)
    names = list(whole)
    has = (names[:2] + names[3:], names[:1] + names[2:], names[1:2])
    found = [{name: whole[name] for name in some} for some in has]
    text = dynamics(tmp_path, [1, 2, 3], found)
    rows = table(tmp_path / "dynamics_by_layer.csv")
    order = list(dict.fromkeys(row["layer"] for row in rows))
    assert sorted(order) == names and [order[0], order[-1]] == [names[0], names[3]]
    assert len(rows) == 3 * 4 * 3
    for row in rows:
        there = row["layer"] in has[int(row["epoch"]) - 1]
        for column in ("mean", "layer_mean_abs_from_uniform"):
            assert bool(row[column]) == there
    assert "over 4 layers" in text
    assert text.splitlines()[3].endswith("  of the 3 that got an input")
    distance = whole[names[1]].distance
    deviation = whole[names[1]].values.std(0, correction=0).mean()
    assert text.splitlines()[4].split()[1:3] == [f"{distance:.4f}", f"{deviation:.4f}"]
    missing = table(tmp_path / "dynamics_by_image.csv", epoch="3", layer=names[0])
    assert len(missing) == 2 * 3 and not any(row["ratio"] for row in missing)


def test_layers_are_in_the_order_of_the_checkpoint_that_has_most():
    merged = merge_names(["ab", "ac", "abce", "de"])
    assert sorted(merged) == list("abcde") and [name for name in merged if name != "d"] == [*"abce"]


def test_reports_are_compared_by_layer(tmp_path, monkeypatch):
    one, other = ratios(6, 3), ratios(4, 4, seed=1)
    del other["stage.0.norm"]
    folders = [tmp_path / name for name in ("one", "other", "both")]
    with monkeypatch.context() as patch:
        patch.setattr(plots, "save", lambda *_: None)
        for folder, found in zip(folders, (one, other), strict=False):
            folder.mkdir()
            write_ratios(folder, found, images(len(found["stage.1.norm"].values)), folder.name)
    folders[2].mkdir()
    text = write_comparison(folders[2], folders[:2])
    check_pictures(folders[2], "comparison")
    lines = text.splitlines()
    assert (
        lines[:2] == ["1: one", "2: other"]
        and text + "\n" == (folders[2] / "summary.txt").read_text()
    )
    assert lines[2].split() == ["layer", *(w for n in NORMALIZERS for w in (n, "1", n, "2"))]
    cells = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    means = [found["stage.1.norm"].values.mean(0) for found in (one, other)]
    expected = torch.stack(means, 1).flatten()
    assert [float(v) for v in cells["stage.1.norm"]] == pytest.approx(expected.tolist(), abs=6e-4)
    assert cells["stage.0.norm"][1] == cells["stage.3.norm"][0] == "nan"
    common = ("stage.1.norm", "stage.2.norm")
    moves = [(one[n].values.mean(0) - other[n].values.mean(0)).abs() for n in common]
    of_bn = sum(move[2] for move in moves) / 2
    assert lines[-1].startswith("mean |difference| of 2 from 1") and f"BN {of_bn:.3f}" in lines[-1]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"summary.txt": "a model"},
        {"summary.txt": "", "ratios_by_layer.csv": "layer,normalizer,mean,std\na,IN,1,0"},
        {"summary.txt": "a model", "ratios_by_layer.csv": "layer,normalizer\na,IN"},
        {"summary.txt": "a model", "ratios_by_layer.csv": "layer,normalizer,mean,std\na,IN,x,0"},
        {"summary.txt": "a model", "ratios_by_layer.csv": ""},
    ],
)
def test_folders_without_a_report_are_told(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"has no report on ratios|has no rows"):
        write_comparison(tmp_path, [tmp_path])


def test_rescaling(tmp_path):
    layers = rescaling()
    layers["stage.0.norm"].omega.add_(0.5)
    layers["stage.1.norm"].omega[4] += 3
    layers["stage.0.norm"].beta[1] -= 2
    text = write_rescaling(tmp_path, layers, images(6), "a model")
    check_pictures(tmp_path, *(f"rescaling_{what}" for what in PICTURES))
    assert "farthest from the mean of all images: 4.png" in text

    moves = {name: v.omega - v.omega.mean(0) for name, v in layers.items()}
    rows = table(tmp_path / "rescaling_by_image.csv")
    assert max(rows, key=lambda row: float(row["stage.0.norm/beta"]))["image"] == "1.png"
    expected = moves["stage.1.norm"][4].square().mean().sqrt().item()
    assert float(rows[4]["stage.1.norm/omega"]) == pytest.approx(expected, abs=1e-5)
    squares = [
        (getattr(v, p) - getattr(v, p).mean(0))[4].square().mean().item()
        for v in layers.values()
        for p in ("omega", "beta")
    ]
    assert float(rows[4]["distance"]) == pytest.approx(sum(squares) ** 0.5, abs=1e-5)
    values = layers["stage.0.norm"].omega
    chosen = {"layer": "stage.0.norm", "parameter": "omega"}
    (row,) = table(tmp_path / "rescaling_by_layer.csv", **chosen)
    check_statistics(row, values)
    groups = table(tmp_path / "rescaling_by_group.csv", **chosen)
    for group, (row, column) in enumerate(zip(groups, values.unbind(1), strict=True)):
        assert row["key_group"] == str(group)
        check_statistics(row, column)
    chosen = {"layer": "stage.1.norm", "class": "class 0", "parameter": "omega"}
    (row,) = table(tmp_path / "rescaling_by_class.csv", **chosen)
    expected = moves["stage.1.norm"][::2].mean(0).square().mean().sqrt().item()
    assert float(row["distance"]) == pytest.approx(expected, abs=1e-5)
    check_statistics(row, layers["stage.1.norm"].omega[::2])


def test_a_class_of_which_nothing_reached_a_layer_has_empty_cells(unrendered, tmp_path):
    layers = {"norm": Rescaling(torch.randn(6, 2), torch.randn(6, 2))}
    for values in (layers["norm"].omega, layers["norm"].beta):
        values[1::2] = torch.nan
    write_rescaling(tmp_path, layers, images(6), "a model")
    assert table(tmp_path / "rescaling_by_image.csv")[1]["norm/omega"] == ""
    one, other = table(tmp_path / "rescaling_by_class.csv", parameter="beta")
    assert one["mean"] and one["distance"] and not other["mean"] and not other["distance"]


def test_rescaling_that_all_images_share_has_no_map(unrendered, tmp_path):
    layers = {"norm": Rescaling(torch.full((6, 2), 0.5), torch.zeros(6, 2))}
    text = write_rescaling(tmp_path, layers, images(6), "a model")
    assert "+0.5000 +- 0.0000" in text and not (tmp_path / "rescaling_map.csv").exists()


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_principal_components_are_the_directions_of_largest_variance(signs):
    generator = torch.Generator().manual_seed(0)
    orthonormal = torch.linalg.qr(torch.randn(200, 3, generator=generator).double())[0]
    orthonormal = torch.linalg.qr(orthonormal - orthonormal.mean(0))[0]
    along = orthonormal * torch.tensor([3.0 * signs[0], 1.0 * signs[1], 0.1])
    directions = torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.0, -1.0], [0.6, -0.8, 0.0]]).double()
    points, axes = embed((along @ directions + 5).numpy(), "pca")
    # The largest loading of either is positive.
    expected = along[:, :2] * torch.tensor([1.0, -1.0])
    np.testing.assert_allclose(points, expected.numpy(), atol=1e-9)
    assert axes[0] == f"principal component 1 ({9 / 10.01:.0%} of the variance)"


def test_tsne_keeps_clusters_together():
    labels = np.arange(3).repeat(20)
    features = np.eye(3)[labels] + 0.05 * np.random.default_rng(0).standard_normal((60, 3))
    points, axes = embed(features, "tsne")
    assert points.shape == (60, 2) and axes == ("t-SNE 1", "t-SNE 2")
    assert share_between_classes(points, labels) > 0.9
    np.testing.assert_array_equal(embed(features, "tsne")[0], points)


def test_an_unknown_method_of_a_map_is_told():
    with pytest.raises(OptionError, match="unknown method 't-sne' of a map; give one of"):
        embed(np.eye(4), "t-sne")


def test_share_between_classes():
    labels = [0, 0, 1, 1]
    features = np.array([[0.0], [0.0], [2.0], [2.0]])
    assert share_between_classes(features, labels) == pytest.approx(1)
    assert share_between_classes(features[[0, 2, 0, 2]], labels) == pytest.approx(0)
    # Between: 4 * 1; within: 4 * 1.
    assert share_between_classes(np.array([[0.0], [2.0], [2.0], [4.0]]), labels) == 0.5
    assert share_between_classes(np.ones((4, 2)), labels) == 0


def test_names_are_shortened_by_what_all_share():
    names = ["backbone.stem.gn", "backbone.stages.0.conv.gn"]
    assert plots.short(names) == ["stem", "stages.0.conv"]
    assert plots.short(["a.norm", "a.b.norm"]) == ["norm", "b.norm"]
    assert plots.short(["a.b"]) == ["a.b"] and plots.short(["x", "y"]) == ["x", "y"]
    assert plots.short(["0", "0.1"]) == ["0", "0.1"]


@pytest.mark.parametrize(
    "picture, layers",
    [
        *product(("by_layer", "boxes", "heat_maps"), (19, 53)),
        ("dynamics", 19),
        # Eleven rows of the panels of which 19 layers have four.
        pytest.param("dynamics", 53, marks=pytest.mark.wide),
        ("dynamics_of", 6),
        ("maps", 53),
    ],
)
def test_nothing_that_is_written_overlaps_or_is_cut_off(picture, layers):
    names = [f"layer{i // 10}.{i}.some_conv" for i in range(layers)]
    generator = np.random.default_rng(0)
    values = {n: generator.random((7, layers)) for n in NORMALIZERS}
    classes = [f"class {i}" for i in range(10)]
    maps = {n: generator.standard_normal((10, layers)) for n in NORMALIZERS}
    draw = {
        "by_layer": lambda: plots.by_layer(
            names,
            {s: {n: (v.mean(0), v.std(0)) for n, v in values.items()} for s in ("one", "other")},
            "Title\nsubject",
        ),
        "dynamics": lambda: plots.dynamics(names, range(7), values, "Title\nsubject", "epoch"),
        "dynamics_of": lambda: plots.dynamics_of(
            names,
            range(100, 107),
            classes,
            {n: generator.random((7, 10, layers)) for n in NORMALIZERS},
            "Title\nsubject",
            "iteration",
        ),
        "maps": lambda: plots.maps(
            {f"epoch {i}": v.T for i, v in enumerate(maps["IN"][None, :2])}, None, (), "Title"
        ),
        "boxes": lambda: plots.boxes(
            names, {n: list(v.T) for n, v in values.items()}, plots.BOXES, plots.OKABE_ITO
        ),
        "heat_maps": lambda: plots.heat_maps(names, classes, maps, "Title"),
    }
    figure = draw[picture]()
    figure.draw_without_rendering()
    whole = figure.bbox
    for ax in figure.axes:
        low, high = ax.get_xlim()
        ticks = [
            t
            for t in ax.get_xticklabels()
            if t.get_visible() and t.get_text() and low <= t.get_position()[0] <= high
        ]
        boxes = [tick.get_window_extent() for tick in ticks]
        assert all(a.x1 <= b.x0 + 1 for a, b in pairwise(boxes))
        assert all(whole.x0 <= b.x0 and b.x1 <= whole.x1 and whole.y0 <= b.y0 for b in boxes)
    title = figure.get_suptitle() and figure._suptitle.get_window_extent()
    assert whole.x0 <= title.x0 and title.x1 <= whole.x1
