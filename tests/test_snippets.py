"""The snippets of README.md and the pages, on stock models of the frameworks."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import ilm_plugins
from helpers import trainings
from helpers.close import assert_close
from ilm_plugins import ExemplarNorm, ILMGroupNorm
from ilm_plugins.frameworks import open_config
from ilm_plugins.layers.base import AdaptiveNorm

ROOT = Path(__file__).parents[1]
MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
MASK_RCNN_GN = "Misc/mask_rcnn_R_50_FPN_3x_gn.yaml"
#: Of 48 channels in the decoder, and of 16 to 320 in the backbone.
SEGMENTERS = [
    "deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py",
    "mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024.py",
]


def snippet(page, language, words=""):
    """Return the only block of a page in a language with some words."""
    text = (ROOT / page).read_text("utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (one,) = (block for block in found if words in block)
    return one


def stock(path):
    """Return a yaml that detectron2 ships."""
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    from detectron2 import model_zoo

    return model_zoo.get_config_file(path)


def model_of(folder, text):
    """Return the model of a yaml, with random weights."""
    (folder / "mine.yaml").write_text(text)
    return open_config(str(folder / "mine.yaml")).build_model()


def kinds(module):
    return {type(layer) for layer in module.modules() if isinstance(layer, AdaptiveNorm)}


def detects(model):
    """Return what a detector returns for an image."""
    return model.eval()([{"image": torch.zeros(3, 64, 64)}])


def test_readmes_yaml_puts_ilmgn_into_fpn_and_box_head(tmp_path):
    model = model_of(tmp_path, snippet("README.md", "yaml"))
    assert [type(conv.norm) for conv in model.roi_heads.box_head.conv_norm_relus] == [
        ILMGroupNorm
    ] * 4
    assert type(model.backbone.fpn_output2.norm) is ILMGroupNorm
    assert len(detects(model)) == 1


@pytest.mark.wide
def test_the_yaml_of_detectron2s_page_puts_ilmgn_into_the_box_head(tmp_path):
    text = snippet("docs/detectron2.md", "yaml", "num_groups=16")
    model = model_of(tmp_path, f"_BASE_: {stock(MASK_RCNN)}\n{text}")
    norms = [conv.norm for conv in model.roi_heads.box_head.conv_norm_relus]
    assert [(norm.num_groups, norm.key_group_size) for norm in norms] == [(16, 8)] * 4


@pytest.mark.wide
def test_the_yaml_to_fine_tune_starts_the_box_head_as_its_group_norm(tmp_path):
    text = snippet("docs/detectron2.md", "yaml", "init='identity'")
    path = f"/path/to/detectron2/configs/{MASK_RCNN_GN}"
    assert path in text
    model = model_of(tmp_path, text.replace(path, stock(MASK_RCNN_GN)))
    assert {norm.init for norm in model.modules() if isinstance(norm, ILMGroupNorm)} == {"identity"}
    assert kinds(model) == kinds(model.roi_heads.box_head) == {ILMGroupNorm}


@pytest.mark.wide
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_detector_is_exported_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = '_BASE_: "ilm_plugins://faster_rcnn_R_18_FPN_gn.yaml"\n'
    text += 'MODEL: {FPN: {NORM: "ILMGN"}, ROI_HEADS: {NUM_CLASSES: 3}}'
    model, folder = model_of(tmp_path, text), tmp_path / "output" / "ilmgn"
    (tmp_path / "mine.yaml").rename("my_detector.yaml")
    folder.mkdir(parents=True)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    names = {}
    exec(snippet("docs/detectron2.md", "python", "TracingAdapter"), names)
    image = torch.rand(3, 200, 300) * 255
    with torch.no_grad():
        (found,) = names["adapter"].outputs_schema(torch.jit.load("my_detector.ts")(image))
        (expected,) = model.eval().inference([{"image": image}], do_postprocess=False)
    assert len(found) == len(expected) > 0
    assert_close(found.scores, expected.scores, 2**12)


@pytest.mark.wide
def test_the_box_head_of_a_stock_detector_is_converted_as_the_page_says(tmp_path):
    model = model_of(tmp_path, f"_BASE_: {stock(MASK_RCNN_GN)}\n")
    names, found = {"model": model}, []
    convert, revert = snippet("docs/adopting.md", "python", "match=").split("print(report)")
    exec(convert, names)
    found.append(kinds(names["model"]))
    exec(f"print(report){revert}", names)
    found.append(kinds(names["model"]))
    assert found == [{ILMGroupNorm}, set()]


@pytest.mark.wide
@pytest.mark.parametrize(
    "page, stock_config", [*zip(("README.md", "docs/openmmlab.md"), SEGMENTERS, strict=True)]
)
def test_a_stock_segmenter_gets_en_everywhere(page, stock_config, tmp_path):
    mmseg = pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    base = Path(mmseg.__file__).parent / ".mim" / "configs" / stock_config
    text = snippet(page, "python", "pretrained=None")
    (tmp_path / "mine.py").write_text(f"_base_ = {str(base)!r}\n{text}")
    model = open_config(str(tmp_path / "mine.py")).build_model().train()
    assert kinds(model) == {ExemplarNorm}
    assert not any(isinstance(module, _BatchNorm) for module in model.modules())
    model(torch.randn(2, 3, 64, 64), mode="tensor").square().mean().backward()
    assert all(
        norm.weight.grad is not None
        for norm in model.backbone.modules()
        if isinstance(norm, ExemplarNorm)
    )


@pytest.mark.parametrize("name", ["openmmlab", "own package"])
def test_a_config_of_the_package_is_a_base_as_the_page_says(name, tmp_path, monkeypatch):
    pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    words = {"openmmlab": "get_config_file", "own package": "my_package"}[name]
    (tmp_path / "my_package.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(snippet("docs/openmmlab.md", "python", words))
    config = open_config(str(tmp_path / "mine.py")).config
    assert config.model.backbone.norm_cfg.type == "EN"
    if name == "own package":
        assert config.test_dataloader.dataset.data_root == "data/mine"


@pytest.mark.parametrize("words", ["efficientnet_b0", "mobilenetv3_small_050"])
def test_a_stock_model_of_timm_gets_our_norms(words):
    timm = pytest.importorskip("timm", reason="needs timm's models")
    names = {"timm": timm, "ilm_plugins": ilm_plugins}
    exec(snippet("docs/adopting.md", "python", words), names)
    assert len(kinds(names["model"])) == 1
    assert names["model"].eval()(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_a_layer_is_applied_to_a_tensor_as_the_page_says():
    names = {}
    exec(snippet("docs/layers.md", "python", "torch.randn"), names)
    assert names["y"].shape == (8, 64, 32, 32)
    assert_close(names["ratios"].sum(1), torch.ones(8), 4)


def test_a_model_of_volumes_is_converted_as_the_page_says():
    pytest.importorskip("monai", reason="needs monai")
    text, names = snippet("docs/adopting.md", "python", "spatial_dims=3"), {}
    made, convert = text.split("model, report")
    exec(made, names)
    x = torch.randn(1, 1, 16, 16, 16)
    expected = names["model"].eval()(x)
    exec(f"model, report{convert}", names)
    assert kinds(names["model"]) == {ilm_plugins.ILMInstanceNorm}
    assert_close(names["model"](x), expected, 2**8)


def test_the_radius_is_set_in_a_loop_as_the_page_says():
    layer = ilm_plugins.SparseSwitchNorm(32)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), layer)
    optimizer, radii = torch.optim.SGD(model.parameters(), lr=0.1), []
    names = {"model": model, "optimizer": optimizer, "iterations": 4, "radii": radii}
    code = snippet("docs/layers.md", "python", "RadiusSchedule")
    exec(f"{code}    radii.append(float(model[1].radius))\n", names)
    assert radii == sorted(radii)
    assert radii[0] < radii[-1]


def test_networks_get_no_weight_decay_as_the_page_says():
    optim = pytest.importorskip("mmengine.optim", reason="needs OpenMMLab: make install-openmmlab")
    names = {}
    exec(snippet("docs/why-did-my-result-change.md", "python", "paramwise_cfg"), names)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), ILMGroupNorm(32))
    options = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1, "weight_decay": 0.1}}
    wrapper = optim.build_optim_wrapper(model, {**options, **names["optim_wrapper"]})
    decay = {id(p): g["weight_decay"] for g in wrapper.param_groups for p in g["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert found["1.encode.weight"] == found["1.decode_mean.weight"] == 0
    assert found["0.weight"] == 0.1


def statistics_of(layer, run):
    """Return a BatchNorm's inputs while ``run`` runs, and its statistics afterwards."""
    inputs = []
    with layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].double())):
        run()
    assert len(inputs) == 3
    return inputs, layer.running_mean.double(), layer.running_var.double()


def assert_averaged(layer, run):
    """Check that ``run`` averages the means and variances of a BatchNorm's batches."""
    inputs, mean, var = statistics_of(layer, run)
    means, variances = zip(*((x.mean((0, 2, 3)), x.var((0, 2, 3))) for x in inputs), strict=True)
    torch.testing.assert_close(mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)


def test_a_loader_of_images_and_labels_gives_batch_norm_its_statistics():
    layer = nn.BatchNorm2d(3)
    batches = [(5 + 2 * torch.randn(4, 3, 8, 8), torch.zeros(4)) for _ in range(3)]
    code = snippet("docs/adopting.md", "python", "update_bn(loader, model)")
    run = partial(exec, code, {"model": nn.Sequential(layer).eval(), "loader": batches})
    assert_averaged(layer, run)
    assert not layer.training


def test_detectron2s_images_give_batch_norm_their_statistics_without_annotations():
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    options = [*trainings.SMALL, "MODEL.FPN.NORM", "BN", "MODEL.DEVICE", "cpu"]
    model = open_config(str(trainings.SHAPES), options).build_model()
    layer = model.backbone.fpn_output2.norm
    batches = [[{"image": 255 * torch.rand(3, 64, 64)} for _ in range(2)] for _ in range(3)]
    code = snippet("docs/adopting.md", "python", "update_bn_stats")
    run = partial(exec, code, {"model": model, "loader": batches})
    inputs, mean, var = statistics_of(layer, run)
    # fvcore's variance is that of all images together.
    every = torch.cat(inputs)
    torch.testing.assert_close(mean, every.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(var, every.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in model.modules())


def test_mmsegs_batches_give_batch_norm_their_statistics():
    pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    model = open_config("ilm_plugins://mmseg/shapes/fcn_r18-d8_shapes_bn.py", []).build_model()
    layer = model.decode_head.convs[0].bn
    images = [torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8) for _ in range(3)]
    batches = [{"inputs": [*two], "data_samples": None} for two in images]
    code = snippet("docs/adopting.md", "python", "data_preprocessor")
    run = partial(exec, code, {"model": model.eval(), "loader": batches})
    assert_averaged(layer, run)
