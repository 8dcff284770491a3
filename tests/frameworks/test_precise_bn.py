"""Running statistics that mmpretrain's and fvcore's "precise BN" measure, of ours as of BN."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import ilm_plugins
from ilm_plugins import ExemplarNorm, SparseSwitchNorm, SwitchNorm

C = 32


class Model(nn.Module):
    """Each norm by itself, of the same input."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleDict(
            {
                "BN": nn.BatchNorm2d(C),
                "EN": ExemplarNorm(C),
                "SN": SwitchNorm(C, momentum=0.3),
                "SSN": SparseSwitchNorm(C),
                "frozen": ilm_plugins.freeze(SwitchNorm(C)),
                "without BN": SwitchNorm(C, normalizers=("IN", "LN")),
            }
        )

    @staticmethod
    def data_preprocessor(x, training):
        return {"x": x}

    def forward(self, x):
        return [norm(x) for norm in self.norms.values()]


@pytest.fixture
def images():
    return 3 * torch.randn(12, C, 5, 5, generator=torch.Generator().manual_seed(0)) + 2


def check(model, mean, var):
    for name in ("BN", "EN", "SN", "SSN"):
        torch.testing.assert_close(model.norms[name].running_mean, mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.norms[name].running_var, var, rtol=1e-5, atol=1e-5)
    assert not model.norms["frozen"].running_mean.any()
    assert model.norms["SN"].momentum == 0.3


def test_mmpretrains_hook(images):
    hook = pytest.importorskip("mmpretrain.engine.hooks.precise_bn_hook", reason="needs mmpretrain")
    model = Model()
    hook.update_bn_stats(model, DataLoader(images, batch_size=4), num_samples=12)
    batches = [x.transpose(0, 1).flatten(1) for x in images.split(4)]
    check(
        model,
        torch.stack([x.mean(1) for x in batches]).mean(0),
        torch.stack([x.var(1) for x in batches]).mean(0),
    )


def test_fvcores_function_which_detectron2_uses(images):
    precise_bn = pytest.importorskip("fvcore.nn.precise_bn", reason="needs fvcore")
    model = Model()
    assert len(precise_bn.get_bn_modules(model)) == 4
    precise_bn.update_bn_stats(model, images.split(4), num_iters=3)
    whole = images.transpose(0, 1).flatten(1)
    check(model, whole.mean(1), whole.var(1, correction=0))
