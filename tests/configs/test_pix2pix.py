"""Every shipped pix2pix config: what is built equals the papers' words."""

import pytest
from torch import nn

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")
pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

from mmengine.optim import build_optim_wrapper

from ilm_plugins import ILMInstanceNorm
from mmengine_configs import configs, load, norms, skeleton
from recipe import recipe

CLASSES = {"in": nn.InstanceNorm2d, "ilmin": ILMInstanceNorm}


def found(cfg):
    """A config in the words of its recipe."""
    train, test = cfg.train_dataloader.dataset, cfg.test_dataloader.dataset
    model, schedule, epochs = skeleton(cfg), cfg.param_scheduler, cfg.train_cfg.max_epochs
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
    # Constant, then linear to 0 after the last epoch.
    assert (schedule.type, schedule.start_factor, schedule.end_factor) == ("LinearLR", 1, 0)
    assert schedule.end == epochs + 1
    sizes = {n: train[n.replace(" ", "_")] for n in ("direction", "size", "load size", "flip")}
    return sizes | {
        **dict(zip(("optimizer", "learning rate", "betas", "weight decay"), settings, strict=True)),
        **{"batch": cfg.auto_scale_lr.base_batch_size, "epochs": epochs},
        **{"images a GPU": cfg.train_dataloader.batch_size, "decay from": schedule.begin},
        **{"lambda": model.lambda_l1, "dropout": dropped[0].p, "dropping layers": len(dropped)},
        "key group size": max([m.num_channels // m.encode.weight.shape[1] for m in ilm] or [1]),
        **{"training images": train.images, "test images": test.images},
        **{"generator": round(plain[0], 1), "discriminator": round(plain[1], 2)},
        "depth": model.generator.depth,
    }


@pytest.mark.parametrize("config", configs("pix2pix"))
def test_a_config_is_the_papers_and_has_the_norms_of_its_name(config):
    cfg = load(f"pix2pix/{config}")
    built, model = found(cfg), skeleton(cfg)
    for name, value in recipe("pix2pix", config).items():
        assert built[name] == (tuple(value) if isinstance(value, list) else value), name
    _, *kinds = config.removesuffix(".py").split("_")
    for network, kind in zip((model.generator, model.discriminator), kinds, strict=True):
        layers = norms(network).values()
        assert {type(layer) for layer in layers} == {CLASSES[kind]}
        assert all(layer.weight is not None for layer in layers)
