"""Subclasses of the layers: whether kernels may compute their equations."""

import pytest
import torch
from torch.nn.utils import parametrize

from equations.cases import every_backend
from ilm_plugins import NORMS, ILMGroupNorm, ILMInstanceNorm, SwitchNorm, use_backend
from ilm_plugins.layers.autoencoder import AutoencoderNorm
from ilm_plugins.layers.base import AdaptiveNorm
from ilm_plugins.ops import Autoencoder, cpu


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
    assert kind(num_channels=64).describe() is not None


@pytest.mark.parametrize("kind", [DoubledILM, DoubledSN])
def test_a_subclass_that_replaces_an_equation_has_no_kernels(kind):
    assert kind(64).describe() is None


@pytest.mark.parametrize("name", NORMS)
def test_a_parametrized_layer_keeps_its_kernels(name):
    """Its class is a subclass that torch makes; ``fully_shard`` makes another one."""
    layer, plain = NORMS[name](64), NORMS[name]
    parametrize.register_parametrization(layer, "bias", torch.nn.Identity())
    assert type(layer) is not plain
    assert layer.describe() == plain(64).describe()


def test_a_subclass_may_describe_its_own_equations():
    class Described(DoubledSN):
        network = SwitchNorm.network

    assert Described(64).describe() is not None


def test_a_subclass_of_one_that_replaces_an_equation_has_no_kernels():
    class Further(DoubledILM):
        pass

    assert Further(64).describe() is None


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


@pytest.mark.parametrize("norm", [ILMGroupNorm, SwitchNorm], ids=["ILMGN", "SN"])
def test_a_subclass_with_a_function_after_the_affine_map_keeps_its_bases_kernels(norm):
    class Thresholded(norm):
        def normalize(self, x):
            return super().normalize(x).relu()

    x, layer, plain = torch.randn(2, 32, 5, 5), Thresholded(32), norm(32)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), plain(x).relu())
    assert layer.describe() is not None
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


class ScaledAutoencoder(AutoencoderNorm):
    """A norm of a user's own on the auto-encoder: omega and beta are what is decoded."""

    mean_drives = "beta"

    def __init__(self, num_channels):
        super().__init__(num_channels, 4, 8, 1e-5)

    def predict(self, mean, var, t):
        beta, omega = self.decode(mean, var, t)
        return omega + self.by_key_group(t.weight), beta + self.by_key_group(t.bias)


def test_a_subclass_of_the_auto_encoder_needs_only_its_prediction():
    layer, x = ScaledAutoencoder(32), torch.randn(2, 32, 5, 5)
    assert layer.describe() is None
    for projection in (layer.decode_mean, layer.decode_var):
        torch.nn.init.zeros_(projection.weight)
    torch.testing.assert_close(layer(x), torch.nn.functional.group_norm(x, 4))


def test_a_network_of_another_class_runs_without_kernels_and_leaves_the_others_theirs():
    class Own(Autoencoder):
        __slots__ = ()

    class WithOwn(ILMGroupNorm):
        network = Own

    layer, plain, x = WithOwn(64), ILMGroupNorm(64), torch.randn(2, 64, 5, 5)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), plain(x))
    if cpu.is_built():
        assert cpu.find_plan(x, plain.moment_groups, plain.describe(), (None,))
        assert not cpu.find_plan(x, layer.moment_groups, layer.describe(), (None,))


def test_a_network_that_is_no_class_is_refused():
    with pytest.raises(TypeError, match="must be a subclass of"):

        class WithMethod(ILMGroupNorm):
            def network(self):
                return None


def test_a_layer_without_tensors_runs():
    class Standardized(AdaptiveNorm, torch.nn.GroupNorm):
        def __init__(self, num_channels):
            super().__init__(4, num_channels)
            self.moment_groups = 4

        def rescale_tensors(self):
            return ()

        def rescale(self, mean, var):
            ones = mean.new_ones(len(mean), self.num_channels)
            return ones, 0 * ones

    x = torch.randn(2, 32, 5, 5)
    torch.testing.assert_close(Standardized(32)(x), torch.nn.functional.group_norm(x, 4))
