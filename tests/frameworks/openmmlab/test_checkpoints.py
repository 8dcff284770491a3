"""MMEngine's checkpoints: no code runs from them, and files are replaced when complete."""

import pytest
import torch

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")

from mmengine.logging import HistoryBuffer
from mmengine.model import initialize
from mmengine.runner import CheckpointLoader
from torch import nn

from ilm_plugins import checkpoints
from ilm_plugins.checkpoints import CheckpointError
from ilm_plugins.cli import train
from ilm_plugins.frameworks.openmmlab.checkpoints import AtomicFiles, latest, use_safe_checkpoints
from runs import mmengine_command as command


@pytest.fixture(autouse=True)
def safe():
    use_safe_checkpoints()


def test_resuming_runs_no_code_of_a_checkpoint(config, trained, tmp_path):
    """MMEngine has the text of a config run."""
    trap, out = tmp_path / "ran", tmp_path / "out"
    out.mkdir()
    contents = torch.load(trained / "iter_2.pth", weights_only=False)
    code = f"x = __import__('os').makedirs({str(trap)!r})\n"
    contents["meta"] |= {"config": code, "cfg": code}
    torch.save(contents, out / "iter_2.pth")
    argv = command(config, "--resume", out=out, opts=["train_cfg.max_iters=3"])
    assert train.main(argv) == 0
    assert latest(out) != str(out / "iter_2.pth") and not trap.exists()


class Overwrites:
    """What MMEngine's own list of harmless functions would let a checkpoint do."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


def test_not_even_attributes_of_what_is_allowed_can_be_had(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"a": Overwrites()}, path)
    for load in (checkpoints.read, CheckpointLoader.load_checkpoint):
        with pytest.raises(CheckpointError, match="getattr"):
            load(str(path))


def test_a_history_of_losses_is_data(tmp_path):
    # As MMEngine's own loader does, which removes at its end what it allowed.
    with torch.serialization.safe_globals([HistoryBuffer, getattr]):
        pass
    use_safe_checkpoints()
    torch.save({"a": HistoryBuffer([1.0, 2.0], [1, 1])}, tmp_path / "c.pth")
    assert checkpoints.read(tmp_path / "c.pth")["a"].mean() == 1.5


def test_an_outdated_checkpoint_goes_when_its_successor_is_there(tmp_path):
    old, new = tmp_path / "iter_1.pth", tmp_path / "iter_2.pth"
    files = AtomicFiles()
    files.put(b"old", old)
    files.remove(str(old))
    AtomicFiles().put(b"figures", tmp_path / "figures.json")
    assert old.exists()
    AtomicFiles().put(b"new", new)
    assert not old.exists() and new.read_bytes() == b"new"


def test_the_latest_checkpoint_is_found_where_its_name_was_not_written(tmp_path):
    assert latest(tmp_path) is None
    for number in (2, 10):
        (tmp_path / f"iter_{number}.pth").touch()
    assert latest(tmp_path) == str(tmp_path / "iter_10.pth")
    (tmp_path / "last_checkpoint").write_text("/elsewhere/iter_2.pth")
    assert latest(tmp_path) == str(tmp_path / "iter_2.pth")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    module, path = nn.Linear(3, 2), tmp_path / "whole.pth"
    weights = {name: torch.ones_like(value) for name, value in module.state_dict().items()}
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in weights.items()}}, path)
    initialize(module, {"type": "Pretrained", "checkpoint": str(path), "prefix": "backbone"})
    torch.testing.assert_close(dict(module.state_dict()), weights)
    with pytest.raises(CheckpointError, match="weight"):
        initialize(module, {"type": "Pretrained", "checkpoint": str(path)})
