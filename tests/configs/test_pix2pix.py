"""Every shipped pix2pix config: what it builds, its recipe's numbers, and real images."""

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")
pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from ilm_plugins import ILMInstanceNorm
from mmengine_configs import load, norms, run, skeleton
from recipes import ROOT, configs, recipe

ALL = configs("pix2pix")
FACADES = [config for config in ALL if config.startswith("facades")]
CLASSES = {"in": nn.InstanceNorm2d, "ilmin": ILMInstanceNorm}
FOLDER = ROOT.parent / "shared" / "data" / "facades"


def test_every_row_of_table_6_has_a_config():
    rows = ("in_in", "ilmin_in", "ilmin_ilmin")
    assert {*FACADES} == {f"facades_{row}.py" for row in rows} and len(ALL) > len(FACADES)


def found(cfg):
    """A config in the words of its recipe."""
    train, test = cfg.train_dataloader.dataset, cfg.test_dataloader.dataset
    model = skeleton(cfg)
    wrappers = build_optim_wrapper(model, cfg.optim_wrapper)
    (settings,) = {
        (type(w.optimizer).__name__, g["lr"], g["betas"], g["weight_decay"])
        for w in wrappers.values()
        for g in w.param_groups
    }
    plain = [
        sum(p.numel() for n, p in net.named_parameters() if "code" not in n) / 1e6
        for net in (model.generator, model.discriminator)
    ]
    dropped = [m for m in model.generator.up.modules() if isinstance(m, nn.Dropout)]
    ilm = [m for m in model.modules() if isinstance(m, ILMInstanceNorm)]
    keys = {m.num_channels // m.encode.weight.shape[1] for m in ilm}
    assert cfg.param_scheduler.type == "HalfLinearLR"
    return {
        **dict(zip(("optimizer", "learning rate", "betas", "weight decay"), settings, strict=True)),
        "batch": cfg.auto_scale_lr.base_batch_size,
        "images a GPU": cfg.train_dataloader.batch_size,
        "lambda": model.lambda_l1,
        "dropout": dropped[0].p,
        "dropping layers": len(dropped),
        "dropout in evaluation": dropped[0].in_evaluation,
        "key group size": keys.pop() if keys else 1,
        "direction": train.direction,
        "epochs": cfg.train_cfg.max_epochs,
        "decay from": cfg.train_cfg.max_epochs // 2,
        "size": train.size,
        "load size": train.load_size,
        "flip": train.flip,
        "training images": train.images,
        "test images": test.images,
        "depth": model.generator.depth,
        "generator": round(plain[0], 1),
        "discriminator": round(plain[1], 2),
    }


@pytest.mark.parametrize("config", ALL)
def test_the_recipes_numbers(config):
    built = found(load("pix2pix", config))
    for name, value in recipe("pix2pix", config).items():
        assert built[name] == (tuple(value) if isinstance(value, list) else value), name


@pytest.mark.parametrize("config", ALL)
def test_the_norms_that_the_name_says(config):
    model = skeleton(load("pix2pix", config))
    _, *kinds = config.removesuffix(".py").split("_")
    for network, kind in zip((model.generator, model.discriminator), kinds, strict=True):
        layers = norms(network).values()
        assert {type(layer) for layer in layers} == {CLASSES[kind]}
        assert all(layer.weight is not None for layer in layers)


@pytest.mark.parametrize("config", FACADES)
def test_variants_differ_in_their_norms_alone(config):
    def rest(name):
        cfg = load("pix2pix", name).to_dict()
        for network in ("generator", "discriminator"):
            del cfg["model"][network]["norm_cfg"]
        return {k: v for k, v in cfg.items() if k not in ("norm_cfg", "ilmin")}

    assert rest(config) == rest("facades_in_in.py")


needs_facades = pytest.mark.skipif(
    not FOLDER.exists(), reason="no real images at ../shared/data/facades"
)


@needs_facades
def test_real_facades_are_read():
    cfg = load("pix2pix", "facades_in_in.py")
    loaders = []
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.num_workers = 0
        loader.dataset.data_root = str(FOLDER)
        loaders.append(Runner.build_dataloader(loader, seed=0))
    assert [len(loader) for loader in loaders] == [200, 200]
    train, test = ({pair.name for pair in loader.dataset.pairs} for loader in loaders)
    assert not train & test
    sample = next(iter(loaders[0]))
    assert sample["input"][0].shape == sample["target"][0].shape == (3, 256, 256)
    # Label maps are flat: most neighbours are alike.
    flat = {k: sample[k][0].float().diff(dim=2).abs().median() for k in ("input", "target")}
    assert flat["input"] < flat["target"]


@pytest.mark.wide
@needs_facades
def test_a_small_network_trains_on_real_facades(tmp_path):
    opts = [
        "train_dataloader.dataset.images=(0,4)",
        "val_dataloader.dataset.images=(200,202)",
        "model.generator.width=8",
        "model.discriminator.width=8",
        "model.generator.norm_cfg={'type':'ILMIN','key_group_size':1,'_delete_':True}",
    ]
    run("pix2pix/facades_in_in.py", FOLDER, tmp_path, *opts, iterations=1, tests=())
    state = torch.load(tmp_path / "epoch_1.pth", weights_only=False)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    assert (tmp_path / "samples" / "epoch_0001.png").exists()
