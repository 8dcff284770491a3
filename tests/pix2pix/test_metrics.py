"""The measures of image translation against their definitions, and the command line."""

import importlib.util

import pytest

pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

import numpy as np
import torch

from ilm_plugins.errors import UserError
from ilm_plugins.pix2pix import metrics
from ilm_plugins.reproduction import registry


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


def test_rmse_and_l1_count_all_pixels_and_channels(pair):
    a, b = (x.double().numpy() for x in pair)
    assert metrics.rmse(*pair) == pytest.approx(np.sqrt(((a - b) ** 2).mean()), rel=1e-5)
    assert metrics.l1(*pair) == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
    black, white = torch.zeros(3, 12, 12, dtype=torch.uint8), torch.full((3, 12, 12), 255)
    assert metrics.rmse(black, white) == metrics.l1(black, white) == 255


def test_rmse_of_rgb_vectors_is_that_of_channels_by_a_factor(pair):
    """As the reports have it, over two pairs of images."""
    pairs = [pair, (noise(1, 40, 48), noise(2, 40, 48))]
    differences = [a.double().numpy() - b.double().numpy() for a, b in pairs]
    norms = [np.linalg.norm(difference, axis=0) for difference in differences]
    expected = np.mean([np.sqrt((norm**2).mean()) for norm in norms])
    measure = registry.measures()["RMSE of RGB vectors"]
    found = measure.read(metrics.compare(pairs, metrics.MEASURES))
    assert found == pytest.approx(expected, rel=1e-5)


def test_ssim_is_that_of_the_paper(pair):
    """With weights summed in numpy, a window for each pixel of the image."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2

    def local(x):
        x = np.pad(x, ((0, 0), (5, 5), (5, 5)), mode="reflect")
        views = np.lib.stride_tricks.sliding_window_view(x, (11, 11), axis=(1, 2))
        return (views * window).sum((-1, -2))

    a, b = (x.double().numpy() for x in pair)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected = numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    assert metrics.ssim(*pair) == pytest.approx(expected.mean(), abs=1e-4)
    assert metrics.ssim(pair[0], pair[0]) == pytest.approx(1)


def test_ssim_of_an_image_smaller_than_its_window():
    with pytest.raises(UserError, match="11 x 11 pixels"):
        metrics.ssim(noise(0, 8, 20), noise(1, 8, 20))


def test_a_figure_is_the_mean_over_images(pair):
    chosen = metrics.measures(["rmse", "l1"])
    found = metrics.compare([pair, (pair[0], pair[0])], chosen)
    assert found == {"rmse": metrics.rmse(*pair) / 2, "l1": metrics.l1(*pair) / 2, "images": 2}


def test_the_mean_image_is_the_best_constant_answer():
    samples = [noise(seed, 12, 12) for seed in range(4)]
    expected = torch.stack(samples).double().mean(0).round().byte()
    assert torch.equal(metrics.mean_image(samples), expected)


@pytest.fixture
def alexnet(tmp_path):
    """A checkpoint of torchvision's AlexNet, with random weights."""
    torchvision = pytest.importorskip("torchvision", reason="makes AlexNet's checkpoint")
    with torch.device("meta"):
        shapes = torchvision.models.alexnet().features.state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {f"features.{k}": torch.randn(v.shape, generator=generator) for k, v in shapes.items()}
    torch.save(state, tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


def test_lpips_uses_the_weights_that_are_given(alexnet, pair):
    from torchmetrics.functional.image.lpips import _LPIPS

    measure = metrics.measures(["lpips"], alexnet)["lpips"]
    assert measure(pair[0], pair[0]) == 0 < measure(*pair)
    state = torch.load(alexnet)
    network = _LPIPS(net="alex", pnet_rand=True)
    convs = [m for m in network.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv, index in zip(convs, (0, 3, 6, 8, 10), strict=True):
        weights = {k: state[f"features.{index}.{k}"] for k in ("weight", "bias")}
        conv.load_state_dict(weights)
    expected = network(*(x[None] / 127.5 - 1 for x in pair)).item()
    assert measure(*pair) == pytest.approx(expected, rel=1e-6)


def test_lpips_of_small_images_is_told(alexnet):
    measure = metrics.measures(["lpips"], alexnet)["lpips"]
    with pytest.raises(UserError, match=r"LPIPS needs 31 x 31 pixels or more, got \(40, 30\)"):
        measure(noise(0, 40, 30), noise(1, 40, 30))
    assert measure(noise(0, 31, 31), noise(1, 31, 31)) > 0


def test_lpips_without_torchvision_is_told(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchvision" else found(name)
    )
    with pytest.raises(UserError, match="LPIPS needs torchvision: pip install torchvision"):
        metrics.measures(["lpips"], "alexnet.pth")


def test_lpips_without_weights_is_left_out_and_nothing_takes_its_place(tmp_path):
    pytest.importorskip("torchvision", reason="LPIPS needs torchvision")
    assert list(metrics.measures()) == ["rmse", "ssim", "l1"]
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("other.pth", "none.pth"):
        with pytest.raises(UserError, match=f"{name}: not a checkpoint of torchvision's AlexNet"):
            metrics.measures(["lpips"], tmp_path / name)
    with pytest.raises(UserError, match="unknown metric psnr; choose from rmse"):
        metrics.measures(["psnr"])


def test_without_torchmetrics(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torchmetrics: pip install 'ilm_p"):
        metrics.measures(["l1"])
