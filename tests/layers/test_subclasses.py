"""Subclasses of the layers: whether kernels may compute their equations."""

import pytest
import torch
from torch.nn.utils import parametrize

from cases import every_backend
from ilm_plugins import NORMS, ExemplarNorm, ILMGroupNorm, ILMInstanceNorm, SwitchNorm, use_backend


class NarrowILM(ILMGroupNorm):
    """ILM+GN with other defaults."""

    def __init__(self, num_channels, num_groups=4, eps=1e-5, **options):
        super().__init__(num_channels, num_groups, eps, key_group_size=2, **options)


class DoubledILM(ILMGroupNorm):
    def predict(self, *moments_and_tensors):
        omega, beta = super().predict(*moments_and_tensors)
        return 2 * omega, 2 * beta


class DoubledSN(SwitchNorm):
    def rescale(self, *moments_and_tensors):
        scale, shift = super().rescale(*moments_and_tensors)
        return 2 * scale, 2 * shift


class NamedILM(ILMGroupNorm):
    """ILM+GN whose first argument is another one."""

    def __init__(self, name, num_channels):
        super().__init__(num_channels)
        self.name = name


def test_a_subclass_may_take_another_argument_before_the_number_of_channels():
    assert NamedILM("stem", num_channels=64).num_channels == 64


@pytest.mark.parametrize("kind", [NarrowILM, ILMInstanceNorm])
def test_a_subclass_that_replaces_no_equation_keeps_its_bases_kernels(kind):
    assert kind.network is ILMGroupNorm.network


@pytest.mark.parametrize("kind", [DoubledILM, DoubledSN])
def test_a_subclass_that_replaces_an_equation_has_no_kernels(kind):
    assert kind.network is None


@pytest.mark.parametrize("name", NORMS)
def test_a_parametrized_layer_keeps_its_kernels(name):
    """Its class is a subclass that torch makes; ``fully_shard`` makes another one."""
    layer, plain = NORMS[name](64), NORMS[name]
    parametrize.register_parametrization(layer, "bias", torch.nn.Identity())
    assert type(layer) is not plain
    assert type(layer).network is plain.network


def test_a_subclass_may_describe_its_own_equations():
    class Described(DoubledSN):
        network = SwitchNorm.network

    assert Described.network is SwitchNorm.network


def test_a_subclass_of_one_that_replaces_an_equation_has_no_kernels():
    class Further(DoubledILM):
        pass

    assert Further.network is None


@every_backend
@pytest.mark.parametrize(
    "kind, base", [(DoubledILM, ILMGroupNorm), (DoubledSN, SwitchNorm)], ids=["ILMGN", "SN"]
)
def test_a_subclass_is_computed_by_its_own_equations(kind, base, backend):
    x = torch.randn(2, 32, 5, 5)
    layer, plain = kind(32), base(32)
    plain.load_state_dict(layer.state_dict())
    with use_backend(backend):
        torch.testing.assert_close(layer(x), 2 * plain(x))


def test_a_printed_subclass_keeps_its_bases_kernels():
    class Shown(ExemplarNorm):
        def extra_repr(self):
            return "shown"

    assert Shown.network is ExemplarNorm.network


@pytest.mark.parametrize("norm", [ILMGroupNorm, SwitchNorm], ids=["ILMGN", "SN"])
def test_a_subclass_with_a_function_after_the_affine_map_keeps_its_bases_kernels(norm):
    class Thresholded(norm):
        def normalize(self, x):
            return super().normalize(x).relu()

    assert Thresholded.network is norm.network
    x, layer, plain = torch.randn(2, 32, 5, 5), Thresholded(32), norm(32)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), plain(x).relu())
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())
