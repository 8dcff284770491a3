"""detectron2's configs, data and hooks, without a training."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
from detectron2.config import CfgNode, LazyCall, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.model_zoo import get_config_file
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathManager
from PIL import Image

from helpers.trainings import LAZY, SHAPES
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks import OpenConfig, open_config
from ilm_plugins.frameworks.detectron2 import evaluation, training
from ilm_plugins.frameworks.detectron2.config import OpenLazyConfig
from ilm_plugins.frameworks.detectron2.config_files import load_config
from ilm_plugins.shapes import dataset, detectron2
from ilm_plugins.trust import ALLOW_CODE, loading

OURS = "ilm_plugins://mask_rcnn_R_50_FPN_batch2_ilmgn.yaml"


class OfStreams(CfgNode):
    """Reads an open file, as fvcore lets a subclass do."""

    @classmethod
    def _open_cfg(cls, stream):
        return stream if hasattr(stream, "read") else super()._open_cfg(stream)


@pytest.mark.parametrize(
    "read",
    [
        CfgNode.load_yaml_with_base,
        lambda path: CfgNode.load_yaml_with_base(allow_unsafe=True, filename=path),
        lambda path: OfStreams.load_yaml_with_base(path.open()),
    ],
    ids=["path", "by name", "stream"],
)
def test_a_yaml_is_read_from_what_fvcore_takes(tmp_path, read):
    (tmp_path / "base.yaml").write_text("MODEL: {MASK_ON: True}\n")
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {tmp_path}/base.yaml\nSEED: 7\n")
    assert read(tmp_path / "mine.yaml") == {"MODEL": {"MASK_ON": True}, "SEED": 7}


def merged(path):
    """What detectron2 itself reads; it runs code."""
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


def test_overrides_of_a_yaml_are_applied():
    words = ["OUTPUT_DIR", "out", "MODEL.FPN.NORM", "EN(reduction=8)"]
    cfg = load_config(str(SHAPES), words, "cuda:0", amp=True)
    assert cfg.OUTPUT_DIR == "out"
    assert cfg.MODEL.FPN.NORM == "EN(reduction=8)"
    assert cfg.MODEL.DEVICE == "cuda:0"
    assert cfg.SOLVER.AMP.ENABLED


def test_a_lazy_config_that_registers_its_dataset_is_read_again(tmp_path, datasets):
    """The datasets of other configs, and the package's, stay."""
    for name in ("own_a", "own_b"):
        (tmp_path / f"{name}.py").write_text(LAZY.replace('"mine"', repr(name), 1))
    for name in ("own_a", "own_b", "own_a"):
        load_config(str(tmp_path / f"{name}.py"))
        assert len(DatasetCatalog.get(name)) == 8
    assert len(DatasetCatalog.get("own_b")) == 8
    with pytest.raises(UserError, match=r"shapes_val.* is already registered"):
        (tmp_path / "own_a.py").write_text(LAZY.replace('"mine"', '"shapes_val"', 1))
        load_config(str(tmp_path / "own_a.py"))
    assert len(DatasetCatalog.get("own_a")) == 8


def test_overrides_of_a_lazy_config_are_applied(tmp_path):
    (tmp_path / "lazy.py").write_text(LAZY)
    words = ["train.output_dir=out", "model.roi_heads.num_classes=7"]
    cfg = load_config(str(tmp_path / "lazy.py"), words, "cuda:0", amp=True)
    assert cfg.train.output_dir == "out"
    assert cfg.model.roi_heads.num_classes == 7
    assert cfg.train.device == "cuda:0"
    assert cfg.train.amp.enabled


@pytest.mark.parametrize(
    "words, reason",
    [
        ("SOLVER.MAX_ITER=3", "Override list has odd length"),
        ("SOLVER.MAX_ITERS 3", "Non-existent key: SOLVER.MAX_ITERS"),
        ("SOLVER.MAX_ITER abc", "Type mismatch"),
    ],
)
def test_a_wrong_override_of_a_yaml_is_one_line(words, reason):
    with pytest.raises(UserError, match=f"^overrides {words}: .*{reason}.*[;?] give KEY VALUE"):
        load_config(str(SHAPES), words.split())


def test_a_wrong_override_of_a_lazy_config_is_one_line(tmp_path):
    (tmp_path / "lazy.py").write_text(LAZY)
    words = "^overrides train.max_iter 3: [^\n]*; give KEY=VALUE[^\n]*$"
    with pytest.raises(UserError, match=words):
        load_config(str(tmp_path / "lazy.py"), ["train.max_iter", "3"])


@pytest.mark.parametrize("variable", [None, ALLOW_CODE])
def test_a_yaml_runs_no_code_unless_asked(tmp_path, monkeypatch, variable):
    monkeypatch.chdir(tmp_path)
    if variable:
        monkeypatch.setenv(variable, "1")
    tag = "!!python/object/apply:os.makedirs [ran]"
    Path("base.yaml").write_text(f"VERSION: {tag}\n_BASE_: {SHAPES}\n")
    Path("mine.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(UserError, match=r"line 1.*may run code.*--unsafe"):
        load_config("mine.yaml")
    assert not Path("ran").exists()
    with loading(unsafe=True):
        load_config("mine.yaml")
    assert Path("ran").exists()


def test_a_config_derives_from_one_of_ours(root, tmp_path):
    path = root / "configs" / "detectron2" / "mask_rcnn_R_50_FPN_batch2_ilmgn.yaml"
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {OURS}\nSEED: 7\n")
    expected = merged(path)
    assert load_config(OURS) == expected  # it has bases beside it
    expected.SEED = 7
    assert merged(tmp_path / "mine.yaml") == expected
    with PathManager.open(OURS) as file:
        assert file.read() == path.read_text()
    assert path.samefile(PathManager.get_local_path(OURS))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_inference_prepares_images_as_the_evaluation_does(monkeypatch, order):
    model, recorded = torch.nn.Identity(), []
    model.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    monkeypatch.setattr(OpenConfig, "build_model", lambda opened: model)
    sizes = ["INPUT.MIN_SIZE_TEST", "32", "INPUT.MAX_SIZE_TEST", "36"]
    yaml = open_config(str(SHAPES), ["INPUT.FORMAT", order, *sizes])
    lazy = OpenLazyConfig("", load_config(get_config_file("common/data/coco.py")), "cpu")
    mapper = lazy.config.dataloader.test.mapper
    mapper.augmentations = [LazyCall(T.ResizeShortestEdge)(short_edge_length=32, max_size=36)]
    mapper.image_format = order
    image = np.zeros((64, 96, 3), np.uint8)
    image[..., 0] = 255  # red
    for opened in (yaml, lazy):
        found = opened.inference()
        (given,) = found.forward([image])
        assert given["image"].shape == (3, 24, 36)
        assert (given["height"], given["width"]) == (64, 96)
        assert given["image"][0 if order == "RGB" else 2].min() == 255
        assert "ResizeShortestEdge" in found.preprocessing
        assert not recorded.pop()
    yaml.config.INPUT.MIN_SIZE_TEST = 0
    assert yaml.inference().preprocessing == "not resized"


def test_shapes_are_generated_on_first_use(tmp_path, monkeypatch):
    few = partial(dataset.write_shapes, num_training=2, num_validation=1, size=64)
    monkeypatch.setattr(dataset, "write_shapes", few)
    folder = tmp_path / "shapes"
    files = folder / "annotations" / "instances_validation.json", folder / "images" / "validation"
    assert len(detectron2._load(tmp_path, "shapes_val", *files)) == 1


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """The evaluation of a config with two test sets, without a model."""
    monkeypatch.setattr(training.evaluation, "inference_on_dataset", lambda *_: {})
    words = ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('shapes_val', 'shapes_train')"]
    return training.Evaluation(open_config(str(SHAPES), words), None)


def test_all_test_sets_are_evaluated(evaluate):
    assert evaluate() == {"shapes_val": {}, "shapes_train": {}}


def test_images_of_all_test_sets_are_counted(evaluate):
    evaluate()
    assert evaluate.images == 12


@pytest.fixture
def crowds():
    """The name of a dataset of COCO's form: an image with an object, and one with a crowd alone."""
    box = {"bbox": [0, 0, 4, 3], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    entry = {"height": 6, "width": 8}
    entries = [
        {**entry, "file_name": "a.jpg", "image_id": 1, "annotations": [{**box, "iscrowd": 0}]},
        {**entry, "file_name": "b.jpg", "image_id": 2, "annotations": [{**box, "iscrowd": 1}]},
    ]
    DatasetCatalog.register("crowds", lambda: entries)
    MetadataCatalog.get("crowds").set(thing_classes=["thing"], evaluator_type="coco")
    yield "crowds"
    DatasetCatalog.remove("crowds")
    MetadataCatalog.remove("crowds")


def test_images_of_crowds_alone_are_not_trained_on(crowds):
    words = ["DATASETS.TRAIN", f"('{crowds}',)", "DATALOADER.NUM_WORKERS", "0"]
    loader = training.Trainer.build_train_loader(load_config(str(SHAPES), words))
    assert training.count_images(loader) == 1


def test_images_of_crowds_alone_are_tested(crowds, tmp_path, monkeypatch):
    monkeypatch.setattr(training.evaluation, "inference_on_dataset", lambda *_: {})
    monkeypatch.setattr(evaluation, "build_evaluator", lambda *_: None)
    words = ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", f"('{crowds}',)"]
    evaluate = training.Evaluation(open_config(str(SHAPES), words), None)
    evaluate()
    assert evaluate.images == 2


@pytest.mark.parametrize(
    "name, kinds",
    [
        ("coco_2017_val", "COCO"),
        ("coco_2017_val_100_panoptic_separated", "SemSeg COCO COCOPanoptic"),
        ("coco_2017_val_panoptic_stuffonly", "SemSeg"),
        ("lvis_v1_val", "LVIS"),
        ("voc_2007_val", "PascalVOCDetection"),
        ("ade20k_sem_seg_val", "SemSeg"),
        ("cityscapes_fine_instance_seg_val", "CityscapesInstance"),
        ("cityscapes_fine_sem_seg_val", "CityscapesSemSeg"),
        ("cityscapes_fine_panoptic_val", "COCOPanoptic CityscapesSemSeg CityscapesInstance"),
        ("shapes_val", "COCO"),
    ],
)
def test_a_dataset_is_evaluated_as_by_detectron2s_own_tools(name, kinds):
    found = evaluation.EVALUATORS[MetadataCatalog.get(name).evaluator_type]
    assert [kind.__name__ for kind in found] == [f"{kind}Evaluator" for kind in kinds.split()]


@pytest.fixture
def own_dataset():
    """The function (metadata) -> the name of a dataset that is registered with them."""

    def register(**metadata):
        DatasetCatalog.register("own", list)
        MetadataCatalog.get("own").set(**metadata)
        return "own"

    yield register
    DatasetCatalog.remove("own")
    MetadataCatalog.remove("own")


@pytest.mark.parametrize("metadata, told", [({"evaluator_type": "other"}, "'other'"), ({}, "None")])
def test_an_unknown_evaluator_is_named_before_a_training(own_dataset, metadata, told):
    name = own_dataset(**metadata)
    words = f"dataset 'own' has the evaluator_type {told}; register it with one of coco, "
    with pytest.raises(UserError, match=words):
        open_config(str(SHAPES), ["DATASETS.TEST", f"('{name}',)"]).check_test()


def test_evaluators_get_the_configs_options_that_they_take(own_dataset, monkeypatch):
    kinds = [
        lambda name, output_dir, kpt_oks_sigmas: (name, output_dir, kpt_oks_sigmas),
        lambda name: name,
    ]
    monkeypatch.setitem(evaluation.EVALUATORS, "own", kinds)
    words = ["OUTPUT_DIR", "out", "TEST.KEYPOINT_OKS_SIGMAS", "[0.5]"]
    cfg = load_config(str(SHAPES), words)
    found = evaluation.build_evaluator(own_dataset(evaluator_type="own"), cfg)
    assert found._evaluators == [("own", "out/inference", [0.5]), "own"]


class KnowsTheBox(torch.nn.Module):
    """A detector that finds the one object of each image, `box`."""

    box = (5, 6, 20, 30)

    def forward(self, inputs):
        x, y, width, height = self.box
        found = Instances(
            (64, 64),
            pred_boxes=Boxes(torch.tensor([[x, y, x + width, y + height]], dtype=torch.float)),
            scores=torch.ones(1),
            pred_classes=torch.zeros(1, dtype=torch.int64),
        )
        return [{"instances": found} for _ in inputs]


@pytest.mark.parametrize("ids", [(0, 1, 2), ("a", "b", "c"), (7, 9, 8)], ids=str)
@pytest.mark.parametrize("is_lazy", [False, True])
def test_perfect_detections_have_an_ap_of_100_whatever_the_annotations_ids(ids, is_lazy, tmp_path):
    """pycocotools itself would never count a box with the id 0."""
    box = {"category_id": 1, "bbox": KnowsTheBox.box, "area": 600, "iscrowd": 0}
    size = {"width": 64, "height": 64}
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", **size} for i in range(3)],
        "annotations": [{"id": one, "image_id": i, **box} for i, one in enumerate(ids)],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "cells.json").write_text(json.dumps(content))
    for i in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{i}.png")
    register_coco_instances("cells", {}, str(tmp_path / "cells.json"), str(tmp_path))
    if is_lazy:
        cfg = load_config(get_config_file("common/data/coco.py"))
        cfg.dataloader.test.dataset.names = "cells"
        cfg.dataloader.test.num_workers = 0
        cfg.dataloader.evaluator.dataset_name = "cells"
        opened = OpenLazyConfig("", cfg, "cpu")
    else:
        words = ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('cells',)"]
        opened = open_config(str(SHAPES), [*words, "DATALOADER.NUM_WORKERS", "0"])
    try:
        assert training.Evaluation(opened, KnowsTheBox())()["bbox"]["AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove("cells")
        MetadataCatalog.remove("cells")


def test_detectron2s_metrics_are_percentages(tmp_path):
    assert open_config(str(SHAPES)).unit("bbox/AP") == "percent"
    config = tmp_path / "lazy.py"
    config.write_text(LAZY)
    opened = open_config(str(config))
    assert opened.unit("bbox/AP") == "percent"
    opened.config.dataloader.evaluator = {"_target_": "mine.Evaluator"}
    assert opened.unit("top1") is None
