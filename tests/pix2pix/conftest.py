"""A small training on the generated shapes, which the tests of pix2pix share."""

import pytest

from runs import mmengine_command


@pytest.fixture(scope="session")
def command(root, datasets):
    """A function that gives the arguments of two epochs of eight pairs."""
    loaders = "train_dataloader", "val_dataloader", "test_dataloader"
    settings = [f"{name}.dataset.data_root={datasets / 'shapes'}" for name in loaders]
    settings += ["train_cfg.max_epochs=2", "train_cfg.val_interval=1"]
    settings += ["default_hooks.logger.interval=1"]
    config = root / "configs" / "pix2pix" / "shapes_ilmin_in.py"

    def make(*options, out, opts=()):
        return mmengine_command(config, *options, out=out, opts=[*settings, *opts])

    return make


@pytest.fixture(scope="session")
def trained(command, tmp_path_factory):
    """The output folder of two epochs, and of a test."""
    from ilm_plugins.cli import train

    out = tmp_path_factory.mktemp("trained")
    assert train.main(command(out=out)) == 0
    assert train.main(command("--eval-only", "--resume", out=out)) == 0
    return out
