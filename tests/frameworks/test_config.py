"""Overrides that make variants of a config, and the settings that are compared."""

import os
import re
import warnings
from pathlib import Path

import pytest

pytest.importorskip("mmengine", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from helpers.trainings import LAZY, SHAPES, write_mmengine_config
from ilm_plugins import ExemplarNorm, freeze
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.config import as_json, check_statistics
from ilm_plugins.frameworks.length import Length
from ilm_plugins.shapes import detectron2 as detectron2_datasets


@pytest.fixture(params=["yaml", "lazy", "mmengine"])
def opened(request, tmp_path, datasets):
    if request.param == "yaml":
        return open_config(str(SHAPES))
    if request.param == "mmengine":
        return open_config(str(write_mmengine_config(tmp_path / "fcn.py", datasets)))
    (tmp_path / "lazy.py").write_text(LAZY)
    return open_config(str(tmp_path / "lazy.py"))


@pytest.mark.parametrize("path", ["my runs/seed0", "EN-reduction=8,-eps=1e-3/seed0", "a(1)/seed0"])
def test_a_folder_keeps_its_name(opened, path):
    again = open_config(opened.path, opened.overrides(folder=path))
    assert again.settings[opened.keys["folder"]] == path


@pytest.mark.parametrize("kind", [Path, os.fsencode])
def test_a_path_is_of_any_kind_that_open_takes(opened, kind):
    again = open_config(kind(opened.path))
    assert (again.path, again.settings) == (opened.path, opened.settings)


@pytest.mark.parametrize(
    "opened, told",
    [
        ("yaml", "360 iterations of 4 images, 180 epochs of 8 images"),
        ("lazy", "2 iterations of 2 images, 0.5 epochs of 8 images"),
        ("mmengine", "4 iterations of 4 images, 4.0 epochs of 4 images"),  # in two processes
    ],
    indirect=["opened"],
)
def test_the_length_of_a_training_is_told_in_iterations_and_epochs(opened, told, datasets):
    detectron2_datasets.register_datasets()
    assert str(opened.length(processes=2)) == told


def test_the_length_in_epochs_is_told_in_iterations():
    length = Length("epochs", 200, 16, 1000)
    assert (str(length), length.iterations) == (
        "200 epochs of 1,000 images, 12,600 iterations of 16 images",
        12600,
    )


@pytest.mark.parametrize("opened", ["yaml", "mmengine"], indirect=True)
def test_a_training_set_that_is_missing_is_not_made_to_count_it(opened, tmp_path):
    folder = tmp_path / "elsewhere"
    override = [f"train_dataloader.dataset.data_root={folder}"]
    if opened.framework == "detectron2":
        override = ["DATASETS.TRAIN", f"('{tmp_path.name}',)"]
        DatasetCatalog.register(tmp_path.name, folder.mkdir)
        MetadataCatalog.get(tmp_path.name).json_file = str(folder / "a.json")
    length = open_config(opened.path, override).length()
    assert length.images is None
    assert str(length) == f"{length.planned} iterations of {length.batch} images"
    assert not folder.exists()


def test_the_last_weights_count(tmp_path, datasets):
    path = write_mmengine_config(tmp_path / "fcn.py", datasets)
    assert open_config(str(path), ["load_from=a.pth", "load_from=None"]).config.load_from is None


def test_a_function_of_a_config_has_no_address():
    """The address is another one in each process."""
    first, second = ({"target": eval("lambda x: x")} for _ in range(2))
    assert as_json(first) == as_json(second)


def test_tuples_are_lists_as_in_json():
    assert as_json({"size": (1, 2)}) == {"size": [1, 2]}


@pytest.mark.parametrize(
    "opened, of_test_set, others",
    [
        ("yaml", ["DATASETS.TEST", "('a',)"], ["DATASETS.TESTS", "('b',)", "SEED", "1"]),
        ("lazy", ["dataloader.test.dataset.names='a'"], ["dataloader.train.num_workers=1"]),
        (
            "mmengine",
            ["test_dataloader.batch_size=1"],
            ["test_cfg.fp16=True", "test_dataloaders=a"],
        ),
    ],
    indirect=["opened"],
    ids=["yaml", "lazy", "mmengine"],
)
def test_overrides_of_the_test_set_are_told_from_others(opened, of_test_set, others):
    assert opened.without_test_set([*of_test_set, *others]) == others


@pytest.mark.parametrize("opened", ["mmengine"], indirect=True)
def test_a_parts_weights_are_not_a_neighbours_whose_name_begins_with_its_name(opened):
    weights = ["model.backbone.init_cfg.checkpoint=a.pth", "model.pretrained=None"]
    found = open_config(opened.path, weights)
    assert found.pretrained(["model.backbone.norm_cfg"]) == "a.pth"
    assert found.pretrained(["model.backbone2.norm_cfg"]) is None


@pytest.mark.parametrize("opened", ["mmengine"], indirect=True)
@pytest.mark.parametrize("kind", ["LN", "BN1d"])
def test_norms_of_tokens_and_vectors_are_no_places(opened, kind):
    key = "model.backbone.norm_cfg"
    assert key in opened.places()
    found = open_config(opened.path, [f"{key}.type={kind}"])
    assert key not in found.places()
    assert found.norms()[key] == kind


#: Kind of config -> overrides by which the box head, or the decoder, has no layer of its ILMGN.
WITHOUT_LAYER = {
    "yaml": ["MODEL.ROI_BOX_HEAD.NUM_CONV", "0"],
    "lazy": ["model.roi_heads.box_head.conv_dims=[]"],
    "mmengine": [
        *("model.decode_head.num_convs=0", "model.decode_head.concat_input=False"),
        "model.decode_head.channels=128",
    ],
}
#: The key that then has no effect, and another one.
KEYS = {
    "yaml": ("MODEL.ROI_BOX_HEAD.NORM", "MODEL.FPN.NORM"),
    "lazy": ("model.roi_heads.box_head.conv_norm", "model.backbone.norm"),
    "mmengine": ("model.decode_head.norm_cfg", "model.backbone.norm_cfg"),
}


@pytest.fixture
def described(request, opened):
    """Build a model whose ILMGN at the first key has no layer, with a norm at the second key."""
    kind = request.node.callspec.params["opened"]

    def describe(norm, asked=()):
        words = [*WITHOUT_LAYER[kind], *opened.with_norm(norm, [KEYS[kind][1]])]
        found = open_config(opened.path, words)
        return found.describe_norms(found.build_model(), asked)

    return *KEYS[kind], describe


@pytest.mark.parametrize("opened", KEYS, indirect=True)
def test_a_norm_that_a_config_names_and_no_layer_has_is_an_error(described):
    key, _, describe = described
    with pytest.raises(UserError, match=rf"^{key} is 'ILMGN.*no layer .* GroupNorm|BatchNorm2d"):
        describe("GN(num_groups=4)" if "norm_cfg" in key else "GN")


@pytest.mark.parametrize("opened", KEYS, indirect=True)
def test_a_key_without_a_layer_is_told_if_other_layers_have_its_norm(described):
    key, _, describe = described
    assert re.fullmatch(rf"\d+ .*ILMGroupNorm.*; none at {key}", describe("ILMGN(num_groups=4)"))
    with pytest.raises(UserError, match=rf"^{key} is 'ILMGN"):
        describe("ILMGN(num_groups=4)", asked=[key])


@pytest.mark.parametrize("norm", ["ILMGroupNorm", "partial(ILMGroupNorm, num_groups=4)"])
def test_a_norm_that_a_config_names_by_its_class_and_no_layer_has_is_an_error(
    norm, tmp_path, datasets
):
    code = "from functools import partial\nfrom ilm_plugins import ILMGroupNorm\n"
    code += f"{KEYS['lazy'][0]} = {norm}\n"
    (tmp_path / "lazy.py").write_text(LAZY + code)
    opened = open_config(str(tmp_path / "lazy.py"), WITHOUT_LAYER["lazy"])
    with pytest.raises(UserError, match=r"conv_norm is 'ILMGN', but no layer has this norm"):
        opened.describe_norms(opened.build_model())


def test_a_detectron2_config_without_its_base_is_an_error(tmp_path):
    (tmp_path / "my.yaml").write_text("MODEL: {FPN: {NORM: ILMGN}, DEVICE: cpu}")
    opened = open_config(str(tmp_path / "my.yaml"))
    with pytest.raises(UserError, match=r"^MODEL\.FPN\.NORM is 'ILMGN'.*is a _BASE_ missing"):
        opened.describe_norms(opened.build_model())


RESNET, BN = "model.backbone.bottom_up", "model.backbone.norm_cfg.type=BN"
#: Kind of config -> overrides, and the keys that keep their plain norm then.
KEPT = [
    ("yaml", ["MODEL.RESNETS.NORM", "FrozenBN"], ["MODEL.RESNETS.NORM"]),
    ("yaml", ["MODEL.BACKBONE.FREEZE_AT", "2"], ["MODEL.RESNETS.NORM"]),
    ("yaml", ["MODEL.RESNETS.NORM", "ILMGN", "MODEL.BACKBONE.FREEZE_AT", "2"], []),
    ("lazy", [f"{RESNET}.freeze_at=1"], [f"{RESNET}.stages.norm", f"{RESNET}.stem.norm"]),
    ("lazy", [f"{RESNET}.stem.norm=FrozenBN"], [f"{RESNET}.stem.norm"]),
    ("mmengine", [BN, "model.backbone.frozen_stages=0"], ["model.backbone.norm_cfg"]),
    ("mmengine", [BN, "model.backbone.norm_cfg.requires_grad=False"], ["model.backbone.norm_cfg"]),
    ("mmengine", [BN, "model.backbone.frozen_stages=None"], []),
    ("mmengine", [BN, "model.backbone.norm_eval=True"], []),  # trains scale and shift
]


@pytest.mark.parametrize("opened, words, keys", KEPT, indirect=["opened"])
def test_plain_norms_that_are_not_trained_keep_their_places(opened, words, keys):
    found = open_config(opened.path, words)
    kept = found.norms().keys() - found.places().keys()
    assert kept - {"MODEL.SEM_SEG_HEAD.NORM"} == {*keys}


@pytest.mark.parametrize("model, is_kept", [("GeneralizedRCNN", True), ("PanopticFPN", False)])
def test_a_semantic_head_that_is_not_built_keeps_its_norm(model, is_kept):
    found = open_config(str(SHAPES), ["MODEL.META_ARCHITECTURE", model])
    assert ("MODEL.SEM_SEG_HEAD.NORM" not in found.places()) == is_kept


@pytest.mark.parametrize("opened", ["lazy"], indirect=True)
def test_a_lazy_config_takes_a_norm_where_it_has_none(opened):
    assert "model.proposal_generator.norm" not in opened.settings
    assert opened.with_norm("EN", ["model.proposal_generator.norm"]) == [
        "model.proposal_generator.norm='EN'"
    ]
    with pytest.raises(UserError, match=r"has no model\.absent; give another place"):
        opened.with_norm("EN", ["model.absent.norm"])


def test_a_function_that_makes_norms_is_a_place(tmp_path, datasets):
    code = "from functools import partial\nmodel.backbone.norm = partial(print)\n"
    code += "model.roi_heads.box_head.conv_norm = lambda channels: None\n"
    (tmp_path / "lazy.py").write_text(LAZY + code)
    places = open_config(str(tmp_path / "lazy.py")).places()
    assert places["model.roi_heads.box_head.conv_norm"] == "<lambda>"
    assert "print" in places["model.backbone.norm"]


@pytest.mark.parametrize("sync, processes, count", [(False, 2, 1), (True, 2, 0), (False, 1, 0)])
def test_batch_statistics_of_each_process_alone_are_told_once(sync, processes, count):
    model = nn.Sequential(*(ExemplarNorm(4, sync=sync) for _ in range(2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_statistics(model, processes)
    told = "ExemplarNorm in 2 processes: each uses the statistics of its own part of the batch; "
    assert [str(one.message).startswith(told) for one in caught] == [True] * count


@pytest.mark.parametrize("name", ["running_mean", "bias"])
def test_a_frozen_layer_with_trained_tensors_is_used(name):
    """Norms of Caffe2's backbones have a weight and a bias, and no statistics."""
    model = nn.Sequential(ExemplarNorm(4), freeze(ExemplarNorm(4)))
    with pytest.warns(UserWarning, match=r"^1 is frozen, .* but not trained"):
        check_statistics(model)
    nn.init.ones_(getattr(model[1], name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_statistics(model)
