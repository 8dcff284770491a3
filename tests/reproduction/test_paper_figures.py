"""The papers' figures, from tables as the command analyze writes them."""

import sys

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("seaborn", reason="draws by seaborn")

from reproduction import paper_figures


@pytest.fixture
def tables(tmp_path):
    """Two tables of 12 images of two classes, whose ratios lie far apart."""
    paths = []
    for seed in range(2):
        draw = np.random.default_rng(seed)
        classes = np.repeat(["cat", "dog"], 6)
        far = np.where(classes == "cat", 0.2, 0.7)
        columns = {
            f"layer.{i}/{n}": far + 0.01 * draw.random(12) for i in (0, 1) for n in ("IN", "BN")
        }
        frame = pd.DataFrame({"image": range(12), "class": classes, **columns})
        paths.append(tmp_path / f"{seed}.csv")
        frame.to_csv(paths[-1], index=False)
    return paths


def test_images_of_a_class_are_close_on_the_map(tables):
    found = paper_figures.embedded(paper_figures.read(tables[:1]))
    centers = found.groupby("class")[["x", "y"]].mean()
    spread = found.groupby("class")[["x", "y"]].std().max().max()
    assert np.linalg.norm(centers.iloc[0] - centers.iloc[1]) > spread


def test_several_tables_are_drawn_over_the_training(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "a.png"), *map(str, tables)])
    paper_figures.main()
    assert (tmp_path / "a.png").stat().st_size
    grid = paper_figures.dynamics(paper_figures.read(tables))
    (first, *_) = grid.axes.flat
    assert {*first.lines[0].get_xdata()} == {0, 1}
