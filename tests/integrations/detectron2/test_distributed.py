"""Several CPU processes under DistributedDataParallel, as detectron2 starts them."""

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.engine import launch
from detectron2.utils import comm

from ilm_plugins import NORMS


def small_model(key):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), NORMS[key](64), nn.Conv2d(64, 1, 3))


def batch(size):
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def gradients(key, sizes):
    """What each of two processes does: its share of one batch, then compare with the other's."""
    from ilm_plugins.integrations.detectron2.train import create_ddp_model

    torch.set_num_threads(1)
    start = sum(sizes[: comm.get_rank()])
    x = batch(sum(sizes))[start : start + sizes[comm.get_rank()]]
    model = create_ddp_model(small_model(key), broadcast_buffers=False)
    assert isinstance(model, nn.parallel.DistributedDataParallel)
    # DistributedDataParallel averages over the processes.
    (model(x).square().sum() * comm.get_world_size()).backward()
    mine = {n: p.grad.tolist() for n, p in model.module.named_parameters()}
    theirs = comm.all_gather(mine)
    assert theirs[0] == theirs[1]
    if key in ("EN", "SN"):
        return  # the batch statistics are each process's own
    alone = small_model(key)
    alone(batch(sum(sizes))).square().sum().backward()
    for name, parameter in alone.named_parameters():
        grad = torch.tensor(mine[name])
        scale = parameter.grad.abs().max()
        assert (grad - parameter.grad).abs().max() <= 1e-6 * max(scale, 1) + 1e-6 * scale, name


@pytest.mark.parametrize("key", NORMS)
def test_an_empty_batch_on_one_process_keeps_the_gradients_right(key):
    # A box head sees no proposals there; the other process must not wait in vain.
    from ilm_plugins.integrations.detectron2.train import and_leave

    args = gradients, key, (3, 0)
    launch(and_leave, num_gpus_per_machine=2, dist_url="auto", args=args)
