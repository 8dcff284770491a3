"""Tables, pictures and summaries of what layers do."""

import csv
from itertools import pairwise

import pytest
import torch

pytest.importorskip("matplotlib", reason="pictures need matplotlib")

import numpy as np
from PIL import Image

from ilm_plugins.analysis import plots
from ilm_plugins.analysis.collect import Ratios, Rescaling
from ilm_plugins.analysis.images import Images
from ilm_plugins.analysis.ratios import write_dynamics, write_ratios
from ilm_plugins.analysis.rescaling import write_rescaling

NORMALIZERS = ("IN", "LN", "BN")


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


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def check_pictures(folder, *names):
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            assert image.format == "PNG" and min(image.size) > 200
            assert len(image.convert("L").getcolors(256)) > 5


def test_ratios(tmp_path):
    found = ratios()
    text = write_ratios(tmp_path, found, images(6), "a model")
    names = {f"ratios_{what}{end}" for what in WRITTEN for end in (".csv", ".png")}
    assert {p.name for p in tmp_path.iterdir()} == {*names, "summary.txt"}
    check_pictures(tmp_path, *(f"ratios_{what}" for what in WRITTEN))
    assert (tmp_path / "summary.txt").read_text() == text + "\n"

    values = torch.stack([r.values for r in found.values()])
    assert f"over 3 layers: {(values - 1 / 3).abs().mean():.4f}" in text
    rows = table(tmp_path / "ratios_by_layer.csv")
    assert len(rows) == 9
    for row, of_layer in zip(rows, values.permute(0, 2, 1).flatten(0, 1), strict=True):
        assert float(row["mean"]) == pytest.approx(of_layer.mean().item(), abs=1e-5)
        assert float(row["std"]) == pytest.approx(of_layer.std(correction=0).item(), abs=1e-5)
    rows = table(tmp_path / "ratios_by_class.csv")
    assert len(rows) == 3 * 2 * 3
    (row,) = (r for r in rows if list(r.values())[:3] == ["stage.1.norm", "class 1", "BN"])
    assert float(row["mean"]) == pytest.approx(values[1, 1::2, 2].mean().item(), abs=1e-5)
    rows = table(tmp_path / "ratios_by_image.csv")
    assert [r["image"] for r in rows] == [f"{i}.png" for i in range(6)]
    assert float(rows[4]["stage.2.norm/LN"]) == pytest.approx(values[2, 4, 1].item(), abs=1e-5)
    quantiles = [float(v) for v in list(table(tmp_path / "ratios_spread.csv")[3].values())[4:]]
    assert all(low <= high for low, high in pairwise(quantiles))
    assert quantiles[3] == pytest.approx(np.median(values[1, :, 0]), abs=1e-5)
    rows = table(tmp_path / "ratios_map.csv")
    assert len(rows) == 6 and len({row["x"] for row in rows}) == 6


WRITTEN = ("by_layer", "by_class", "by_image", "spread", "map")


def test_without_classes_nothing_is_written_by_class(tmp_path):
    write_ratios(tmp_path, ratios(), images(6, classes=0), "a model")
    names = {p.stem for p in tmp_path.iterdir()}
    assert names == {"summary", *(f"ratios_{what}" for what in WRITTEN)} - {"ratios_by_class"}


def test_ratios_that_all_images_share_have_one_table(tmp_path):
    shared = Ratios(("IN", "BN"), torch.tensor([[0.2, 0.8]]).repeat(5, 1))
    text = write_ratios(tmp_path, {"a.mean": shared, "a.var": shared}, images(5), "a model")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"ratios_by_layer.csv", "ratios_by_layer.png", "summary.txt"}
    assert "the same for all images" in text and "over 2 layers: 0.3000" in text


def test_layers_whose_ratios_all_images_share_are_named(tmp_path):
    shared = Ratios(NORMALIZERS, torch.tensor([[0.2, 0.7, 0.1]]).repeat(6, 1))
    text = write_ratios(tmp_path, {**ratios(), "a.shared": shared}, images(6), "a model")
    assert "as their ratios are the same for all images: a.shared\n" in text
    assert len(table(tmp_path / "ratios_by_layer.csv")) == 12
    assert not any("a.shared" in name for name in table(tmp_path / "ratios_by_image.csv")[0])


def test_layers_with_other_normalizers_and_missing_images(tmp_path):
    found = ratios(6, 2)
    found["stage.2.norm"] = Ratios(("GN", "BN"), torch.rand(6, 2).double().softmax(1))
    found["stage.0.norm"].values[0] = torch.nan
    text = write_ratios(tmp_path, found, images(6), "a model")
    check_pictures(tmp_path, *(f"ratios_{what}" for what in WRITTEN))
    seen = [found["stage.0.norm"].values[1:], *(r.values for r in list(found.values())[1:])]
    deviation = torch.cat([values.std(0, correction=0) for values in seen]).mean()
    assert f"between images, mean over layers: {deviation:.4f}" in text
    assert table(tmp_path / "ratios_by_image.csv")[0]["stage.0.norm/IN"] == ""
    (row,) = (
        r
        for r in table(tmp_path / "ratios_by_class.csv")
        if list(r.values())[:3] == ["stage.0.norm", "class 0", "IN"]
    )
    expected = found["stage.0.norm"].values[2::2, 0].mean().item()
    assert float(row["mean"]) == pytest.approx(expected, abs=1e-5)
    (row,) = (r for r in table(tmp_path / "ratios_by_layer.csv") if r["normalizer"] == "GN")
    assert row["layer"] == "stage.2.norm"


def test_one_or_two_images_have_no_map(tmp_path):
    write_ratios(tmp_path, ratios(2), images(2), "a model")
    assert not (tmp_path / "ratios_map.csv").exists()
    assert (tmp_path / "ratios_by_image.png").exists()


def test_dynamics(tmp_path):
    found = [ratios(4, 25, seed=i) for i in range(3)]
    text = write_dynamics(tmp_path, [1, 5, 20], found, "a model")
    check_pictures(tmp_path, "dynamics")
    rows = table(tmp_path / "dynamics.csv")
    assert len(rows) == 3 * 25 * 3 and {row["epoch"] for row in rows} == {"1", "5", "20"}
    (row,) = (r for r in rows if list(r.values())[:3] == ["5", "stage.24.norm", "BN"])
    mean = found[1]["stage.24.norm"].values[:, 2].mean().item()
    assert float(row["mean"]) == pytest.approx(mean, abs=1e-5)
    lines = text.splitlines()
    distances = [r.distance for r in found[2].values()]
    assert lines[-1].split() == ["20", f"{np.mean(distances):.4f}"]


def test_dynamics_of_layers_that_saw_nothing_at_some_checkpoint(tmp_path):
    """In the order of depth, of whichever checkpoint has them."""
    whole = ratios(4, 4)
    names = list(whole)
    has = (names[:2] + names[3:], names[:1] + names[2:], names[1:2])
    found = [{name: whole[name] for name in some} for some in has]
    text = write_dynamics(tmp_path, [1, 2, 3], found, "a model")
    check_pictures(tmp_path, "dynamics")
    rows = table(tmp_path / "dynamics.csv")
    order = list(dict.fromkeys(row["layer"] for row in rows))
    assert sorted(order) == names and [order[0], order[-1]] == [names[0], names[3]]
    assert len(rows) == 3 * 4 * 3
    for row in rows:
        there = row["layer"] in has[int(row["epoch"]) - 1]
        for column in ("mean", "layer_mean_abs_from_uniform"):
            assert bool(row[column]) == there
    assert "over 4 layers" in text
    assert text.splitlines()[-2].endswith("  of the 3 that got anything")
    distance = whole[names[1]].distance
    assert text.splitlines()[-1].split()[1] == f"{distance:.4f}"


def test_layers_are_in_the_order_of_the_checkpoint_that_has_most(tmp_path):
    whole = ratios(4, 5)
    has = [[0, 1], [0, 2], [0, 1, 2, 4], [3, 4]]
    found = [{f"stage.{i}.norm": whole[f"stage.{i}.norm"] for i in some} for some in has]
    write_dynamics(tmp_path, [1, 2, 3, 4], found, "a model")
    layers = dict.fromkeys(row["layer"] for row in table(tmp_path / "dynamics.csv"))
    assert [int(name.split(".")[1]) for name in layers if "3" not in name] == [0, 1, 2, 4]


def test_rescaling(tmp_path):
    generator = torch.Generator().manual_seed(0)
    layers = {
        name: Rescaling(*0.1 * torch.randn(2, 6, groups, generator=generator))
        for name, groups in {"stage.0.norm": 2, "stage.1.norm": 4}.items()
    }
    layers["stage.0.norm"].omega.add_(0.5)
    layers["stage.1.norm"].omega[4] += 3
    layers["stage.0.norm"].beta[1] -= 3
    text = write_rescaling(tmp_path, layers, images(6), "a model")
    written = ("by_layer", "by_class", "ranking")
    check_pictures(tmp_path, *(f"rescaling_{what}" for what in written))
    assert "omega is moved most by 4.png" in text and "beta is moved most by 1.png" in text

    ranking = table(tmp_path / "rescaling_ranking.csv")
    assert len(ranking) == 12
    first = {row["parameter"]: row for row in ranking if row["rank"] == "1"}
    assert (first["omega"]["image"], first["omega"]["most_in_layer"]) == ("4.png", "stage.1.norm")
    assert (first["beta"]["image"], first["beta"]["class"]) == ("1.png", "class 1")
    moves = [v.omega - v.omega.mean(0) for v in layers.values()]
    expected = np.mean([v[4].square().mean().sqrt() for v in moves])
    assert float(first["omega"]["rms"]) == pytest.approx(expected, abs=1e-5)
    rows = table(tmp_path / "rescaling_by_image.csv")
    of_four = float(rows[4]["stage.1.norm/omega"])
    assert of_four == pytest.approx(moves[1][4].square().mean().sqrt().item(), abs=1e-5)
    (row,) = (
        r
        for r in table(tmp_path / "rescaling_by_layer.csv")
        if list(r.values())[1:4] == ["stage.0.norm", "omega", "from_B"]
    )
    values = layers["stage.0.norm"].omega
    assert float(row["mean"]) == pytest.approx(values.mean().item(), abs=1e-5)
    rows = table(tmp_path / "rescaling_by_class.csv")
    (row,) = (r for r in rows if list(r.values())[:3] == ["stage.1.norm", "class 0", "omega"])
    expected = moves[1][::2].mean(0).square().mean().sqrt().item()
    assert float(row["rms"]) == pytest.approx(expected, abs=1e-5)
    of_class = layers["stage.1.norm"].omega[::2]
    assert float(row["mean"]) == pytest.approx(of_class.mean().item(), abs=1e-5)
    assert float(row["std"]) == pytest.approx(of_class.std(correction=0).item(), abs=1e-5)
    assert float(row["q50"]) == pytest.approx(np.median(of_class), abs=1e-5)
    assert len(table(tmp_path / "rescaling_by_group.csv")) == 2 * (2 + 4)


def test_images_of_which_nothing_reached_a_layer_have_no_rank(tmp_path, monkeypatch):
    layers = {"norm": Rescaling(torch.randn(6, 2), torch.randn(6, 2))}
    for values in (layers["norm"].omega, layers["norm"].beta):
        values[1::2] = torch.nan  # those of a class
    drawn = {}
    draw = plots.thumbnails
    monkeypatch.setattr(
        plots, "thumbnails", lambda rows, title: (drawn.update(rows), draw(rows, title))[1]
    )
    write_rescaling(tmp_path, layers, images(6), "a model")
    ranking = table(tmp_path / "rescaling_ranking.csv")
    assert [row["rank"] for row in ranking] == ["1", "2", "3"] * 2
    assert {row["image"] for row in ranking} == {"0.png", "2.png", "4.png"}
    for row in drawn.values():
        assert len(row) == 3 and not any("nan" in caption for caption, _ in row)
    assert table(tmp_path / "rescaling_by_image.csv")[1]["norm/omega"] == ""
    of_class = {
        row["class"]: row
        for row in table(tmp_path / "rescaling_by_class.csv")
        if row["parameter"] == "beta"
    }
    assert of_class["class 0"]["mean"] and not of_class["class 1"]["mean"]


def test_rescaling_without_classes(tmp_path):
    layers = {"norm": Rescaling(torch.randn(3, 2), torch.randn(3, 2))}
    write_rescaling(tmp_path, layers, images(3, classes=0), "a model")
    assert not list(tmp_path.glob("*class*"))


def test_names_are_shortened_by_what_all_share():
    names = ["backbone.stem.gn", "backbone.stages.0.conv.gn"]
    assert plots.short(names) == ["stem", "stages.0.conv"]
    assert plots.short(["a.norm", "a.b.norm"]) == ["norm", "b.norm"]
    assert plots.short(["a.b"]) == ["a.b"] and plots.short(["x", "y"]) == ["x", "y"]
    assert plots.short(["0", "0.1"]) == ["0", "0.1"]


@pytest.mark.parametrize("layers", [19, 53])
def test_nothing_that_is_written_overlaps_or_is_cut_off(layers):
    names = [f"layer{i // 10}.{i}.some_conv" for i in range(layers)]
    generator = np.random.default_rng(0)
    values = {n: generator.random((7, layers)) for n in NORMALIZERS}
    classes = [f"class {i}" for i in range(10)]
    maps = {n: generator.standard_normal((10, layers)) for n in NORMALIZERS}
    figures = [
        plots.by_layer(names, values, "Title\nsubject"),
        plots.boxes(names, {n: list(v.T) for n, v in values.items()}, plots.BOXES, plots.OKABE_ITO),
        plots.heat_maps(names, classes, maps, "Title", "label", "class"),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        whole = figure.bbox
        for ax in figure.axes:
            ticks = [t for t in ax.get_xticklabels() if t.get_visible() and t.get_text()]
            boxes = [tick.get_window_extent() for tick in ticks]
            assert all(a.x1 <= b.x0 + 1 for a, b in pairwise(boxes))
            assert all(whole.x0 <= b.x0 and b.x1 <= whole.x1 and whole.y0 <= b.y0 for b in boxes)
        title = figure.get_suptitle() and figure._suptitle.get_window_extent()
        assert whole.x0 <= title.x0 and title.x1 <= whole.x1
