"""The metrics of image translation against their definitions."""

import pytest

pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

import torch

from helpers.close import assert_close
from helpers.workers import Harmful
from ilm_plugins.errors import UserError
from ilm_plugins.pix2pix import metrics


def noise(seed, *size):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)


@pytest.fixture
def pair():
    """A smooth image of some 40..160, and the same with noise."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(48), indexing="ij")
    smooth = 40 + torch.stack([3 * rows, 2 * columns, rows + columns])
    noisy = smooth + noise(0, 40, 48) / 4
    return noisy.to(torch.uint8), smooth.to(torch.uint8)


def test_rmse_counts_all_pixels_and_channels(pair):
    a, b = (x.double() for x in pair)
    assert_scores([metrics.rmse(*pair)], [(a - b).square().mean().sqrt()])


def test_l1_counts_all_pixels_and_channels(pair):
    a, b = (x.double() for x in pair)
    assert_scores([metrics.l1(*pair)], [(a - b).abs().mean()])


def assert_scores(found, expected, roundings=64):
    assert_close(torch.tensor(found), torch.tensor(expected), roundings)


@pytest.mark.parametrize("a, b", [(4, 9), (0, 255), (128, 130), (200, 200)])
def test_ssim_of_constant_images_is_that_of_their_means(a, b):
    """Equation 6 of Wang et al., 2004, whose second factor is 1 without variances."""
    images = [torch.full((3, 16, 16), value, dtype=torch.uint8) for value in (a, b)]
    c1 = (0.01 * 255) ** 2
    assert_scores([metrics.ssim(*images)], [(2 * a * b + c1) / (a**2 + b**2 + c1)])


def test_ssim_weighs_pixels_by_a_gaussian_of_11_pixels(pair):
    """Equation 13 of Wang et al., 2004, deviation 1.5; images are reflected at their borders."""
    bell = (-0.5 * (torch.arange(-5, 6) / 1.5).double().square()).exp()
    window = (torch.outer(bell, bell) / bell.sum() ** 2)[None, None]
    pad = torch.nn.ReflectionPad2d(5)
    a, b = (pad(x.double()[:, None]) for x in pair)
    of_a, of_b = (torch.conv2d(x, window) for x in (a, b))
    both, var_a, var_b = (
        torch.conv2d(x * y, window) - of_x * of_y
        for x, y, of_x, of_y in ((a, b, of_a, of_b), (a, a, of_a, of_a), (b, b, of_b, of_b))
    )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = (2 * both + c2) / (var_a + var_b + c2)
    expected = structure * (2 * of_a * of_b + c1) / (of_a**2 + of_b**2 + c1)
    assert_scores([metrics.ssim(*pair)], [expected.mean()], 2**13)  # of 255**2, which cancels


def test_lpips_uses_the_weights_that_are_given(tmp_path, pair):
    torchvision = pytest.importorskip("torchvision", reason="makes AlexNet's checkpoint")
    from torchmetrics.functional.image.lpips import _LPIPS

    with torch.device("meta"):
        shapes = torchvision.models.alexnet().features.state_dict()
    state = {f"features.{name}": torch.randn(like.shape) for name, like in shapes.items()}
    torch.save(state, tmp_path / "alexnet.pth")
    measure = metrics.measures(tmp_path / "alexnet.pth")["lpips"]
    assert measure(pair[0], pair[0]) == 0 < measure(*pair)
    network = _LPIPS(net="alex", pnet_rand=True)
    convs = [m for m in network.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv, index in zip(convs, (0, 3, 6, 8, 10), strict=True):
        conv.load_state_dict({k: state[f"features.{index}.{k}"] for k in ("weight", "bias")})
    expected = network(*(x[None] / 127.5 - 1 for x in pair)).item()
    assert_scores([measure(*pair)], [expected])


def test_without_weights_there_is_no_lpips():
    assert list(metrics.measures()) == ["rmse", "ssim", "l1"]


def test_weights_of_lpips_run_no_code(tmp_path):
    torch.save(Harmful(tmp_path / "ran"), tmp_path / "evil.pth")
    with pytest.raises(UserError, match="may run code"):
        metrics.measures(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
