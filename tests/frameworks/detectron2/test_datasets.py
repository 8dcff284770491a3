"""The generated data set in detectron2's catalogue."""

from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

from ilm_plugins.data import SHAPES, shapes
from ilm_plugins.frameworks.detectron2 import datasets as integration


def test_both_splits_are_registered_as_coco_instances(datasets):
    for name, count in (("shapes_train", 8), ("shapes_val", 4)):
        records = DatasetCatalog.get(name)
        assert len(records) == count and all(record["annotations"] for record in records)
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "coco"
        assert metadata.thing_classes == list(SHAPES)
        assert Path(metadata.json_file).is_relative_to(datasets)


def test_it_is_generated_on_first_use(tmp_path, monkeypatch):
    few = partial(shapes.write_shapes, num_training=2, num_validation=1, size=64)
    monkeypatch.setattr(shapes, "write_shapes", few)
    folder = tmp_path / "shapes"
    load = partial(
        integration._load,
        tmp_path,
        "shapes_val",
        folder / "annotations" / "instances_validation.json",
        folder / "images" / "validation",
    )
    assert len(load()) == 1
    written = (folder / "shapes.json").stat().st_mtime_ns
    assert len(load()) == 1 and (folder / "shapes.json").stat().st_mtime_ns == written
