"""Writing checkpoints: each format has what was written."""

import numpy as np
import pytest
import torch

from ilm_plugins.checkpoints import read, write
from ilm_plugins.errors import UserError


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ""])
def test_what_was_written_last_is_read(tmp_path, suffix, monkeypatch):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="its files need safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    path, value = f"~/c{suffix}", torch.eye(3)[:, 1:]
    for scale in (1, 2):
        state = {"weight": scale * value, "tied": scale * value[:1].expand(4, 2)}
        if suffix == ".pkl":
            state = {name: tensor.numpy() for name, tensor in state.items()}
        write(state, path)
        for name, tensor in read(path).items():
            assert np.array_equal(tensor, state[name])
    assert [p.name for p in tmp_path.iterdir()] == [f"c{suffix}"]


def test_a_safetensors_says_that_its_tensors_are_torchs(tmp_path):
    """transformers loads no other."""
    safetensors = pytest.importorskip("safetensors", reason="its files need safetensors")
    write({"weight": torch.eye(2)}, tmp_path / "c.safetensors")
    with safetensors.safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_tensors_in_a_pkl_are_arrays(tmp_path):
    write({"model": {"weight": torch.eye(2)}}, tmp_path / "c.pkl")
    weight = read(tmp_path / "c.pkl")["model"]["weight"]
    assert isinstance(weight, np.ndarray)
    assert np.array_equal(weight, np.eye(2))


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_a_format_without_sparse_tensors_is_told(tmp_path, suffix):
    with pytest.raises(UserError, match=r"is torch.sparse_coo, which a .* cannot hold; give"):
        write({"weight": torch.eye(2).to_sparse()}, tmp_path / f"c{suffix}")
