"""Tables and summaries of what layers do to images."""

import re
from dataclasses import replace

import pytest
import torch

pytest.importorskip("pandas", reason="needs the extra ilm_plugins[analysis]")

import numpy as np
import pandas as pd
from PIL import Image

from reproduction.analysis import tables
from reproduction.analysis.collect import Ratios, Rescaling
from reproduction.analysis.images import Images
from reproduction.analysis.tables import TableFolder, share_between_classes

NORMALIZERS = "IN", "LN", "BN"


@pytest.fixture
def report(tmp_path):
    """A report on eight images of two classes, in its own folder."""
    (tmp_path / "out").mkdir()
    files = [tmp_path / f"{i}.png" for i in range(8)]
    for i, file in enumerate(files):
        Image.new("RGB", (6, 4), (20 * i,) * 3).save(file)
    images = Images([file.name for file in files], ["class 0", "class 1"] * 4, files)
    return TableFolder(tmp_path / "out", images, "a model")


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


def test_ratios(report):
    found = ratios()
    text = tables.write_ratios(report, found)
    files = {f"ratios_{what}.csv" for what in ("by_layer", "by_class", "by_image")}
    assert {path.name for path in report.folder.iterdir()} == files | {"summary.txt"}
    values = torch.stack([r.values for r in found.values()])
    chosen, of_bn = {"layer": "stage.1.norm", "normalizer": "BN"}, values[1, :, 2]
    row = rows(report, "ratios_by_layer", **chosen)
    assert row["std"].item() == near(of_bn.std(correction=0))
    assert row["5%"].item() == near(np.quantile(of_bn, 0.05))
    row = rows(report, "ratios_by_class", **chosen, of_class="class 1")
    assert row["mean"].item() == near(of_bn[1::2].mean())
    assert rows(report, "ratios_by_image")["stage.1.norm/BN"].tolist() == near(of_bn)
    assert f"mean over layers: {values.std(1, correction=0).mean():.4f}" in text
    within = sum(8 / 2 * values[:, i::2].var(1, correction=0).sum() for i in (0, 1))
    every = 8 * values.var(1, correction=0).sum()
    assert f"between classes: {1 - within / every:.3f}" in text


def test_shares_and_layers_without_differences_or_without_images(report):
    found = ratios()
    report = replace(report, images=replace(report.images, classes=[""] * 8))
    for r in found.values():
        r.values[1] = torch.nan
    shared = torch.tensor([[0.2, 0.8]]).repeat(8, 1)
    found["shared"] = Ratios(("GN", "BN"), shared, torch.tensor([0.0, 3.0]))
    text = tables.write_ratios(report, found)
    assert re.search(r"BN +0\.8000 +0\.0000 +1\.0000\n +GN +0\.2000 +0\.0000 +0\.0000\n", text)
    assert len(rows(report, "ratios_by_layer")) == 3 * 3 + 2
    assert rows(report, "ratios_by_layer", normalizer="GN").share.item() == 0
    assert rows(report, "ratios_by_image", image="1.png")["stage.0.norm/IN"].isna().all()
    assert not (report.folder / "ratios_by_class.csv").exists()


def test_rescaling(report):
    layers = {
        name: Rescaling(*0.1 * torch.randn(2, 8, groups, dtype=torch.float64))
        for name, groups in (("one", 2), ("other", 4))
    }
    omega = layers["other"].omega
    text = tables.write_rescaling(report, layers)
    deviation = omega.var(0, correction=0).mean().sqrt()
    assert [f"{omega.mean():+.4f}", f"{deviation:+.4f}"] in [
        row.split()[-2:] for row in text.splitlines()
    ]
    assert rows(report, "rescaling_by_image")["other/omega/3"].tolist() == near(omega[:, 3])
    chosen = {"layer": "other", "parameter": "omega"}
    assert rows(report, "rescaling_by_layer", **chosen)["mean"].tolist() == near(omega.mean(0))
    row = rows(report, "rescaling_by_class", **chosen, of_class="class 0")
    assert row["mean"].item() == near(omega[::2].mean())


def test_classes_far_apart_have_most_of_the_variance():
    labels = np.arange(3).repeat(20)
    values = np.eye(3)[labels] + 0.05 * np.random.default_rng(0).standard_normal((60, 3))
    index = pd.MultiIndex.from_arrays([range(60), labels], names=["image", "class"])
    assert share_between_classes(pd.DataFrame(values, index)) > 0.9
    assert share_between_classes(pd.DataFrame(0 * values, index)) == 0


def test_a_name_that_is_no_unicode_is_written(report):
    report.table("names", pd.DataFrame({"image": ["caf\udce9.png"]}))
    assert "caf" in (report.folder / "names.csv").read_text()
