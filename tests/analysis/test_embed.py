"""Maps of images, and how much of their differences is between classes."""

import builtins

import pytest
import torch

from ilm_plugins.analysis.embed import embed, share_between_classes
from ilm_plugins.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_principal_components_are_the_directions_of_largest_variance(signs):
    orthonormal = torch.linalg.qr(torch.randn(200, 3, generator=generator()).double())[0]
    orthonormal = torch.linalg.qr(orthonormal - orthonormal.mean(0))[0]
    along = orthonormal * torch.tensor([3.0 * signs[0], 1.0 * signs[1], 0.1])
    directions = torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.0, -1.0], [0.6, -0.8, 0.0]]).double()
    points, axes = embed(along @ directions + 5, "pca")
    # The largest loading of either is positive.
    torch.testing.assert_close(points, along[:, :2] * torch.tensor([1.0, -1.0]))
    assert axes[0] == f"principal component 1 ({9 / 10.01:.0%} of the variance)"


def test_what_is_missing_counts_as_the_mean():
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [torch.nan, torch.nan]])
    points, _ = embed(features, "pca")
    torch.testing.assert_close(points[3], torch.zeros(2).double())


def test_tsne_keeps_clusters_together():
    pytest.importorskip("sklearn", reason="t-SNE needs scikit-learn")
    labels = torch.arange(3).repeat_interleave(20)
    features = torch.eye(3)[labels] + 0.05 * torch.randn(60, 3, generator=generator())
    points, axes = embed(features, "tsne")
    assert points.shape == (60, 2) and axes == ("t-SNE 1", "t-SNE 2")
    assert share_between_classes(points, labels) > 0.9
    torch.testing.assert_close(embed(features, "tsne")[0], points)


def test_share_between_classes():
    labels = torch.tensor([0, 0, 1, 1])
    features = torch.tensor([[0.0], [0.0], [2.0], [2.0]])
    assert share_between_classes(features, labels) == pytest.approx(1)
    assert share_between_classes(features[[0, 2, 0, 2]], labels) == pytest.approx(0)
    # Between: 4 * 1; within: 4 * 1.
    assert share_between_classes(torch.tensor([[0.0], [2.0], [2.0], [4.0]]), labels) == 0.5
    assert share_between_classes(torch.ones(4, 2), labels) == 0


def test_mistakes(monkeypatch):
    with pytest.raises(UserError, match="2 images are too few for a map; give at least 3"):
        embed(torch.zeros(2, 3))
    found = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("sklearn"):
            raise ImportError("No module named 'sklearn'")
        return found(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"t-SNE needs scikit-learn.*ilm_plugins\[analysis\]"):
        embed(torch.zeros(4, 3), "tsne")
