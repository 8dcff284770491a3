"""What tests run in processes of their own, which find it by this module's name."""

import os

import torch
from torch import distributed as dist
from torch import nn

from ilm_plugins import NORMS


class Harmful:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.makedirs, (self.path, 0o777, True)


# ---- under detectron2


def small_model(key):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), NORMS[key](64), nn.Conv2d(64, 1, 3))


def batch(size):
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def detectron2_gradients(sizes):
    """What each of two processes does: its share of one batch, then compare with the other's."""
    torch.set_num_threads(1)
    for key in NORMS:
        _detectron2_gradients(key, sizes)


def _detectron2_gradients(key, sizes):
    from detectron2.utils import comm

    from ilm_plugins.integrations.detectron2.train import create_ddp_model

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
        assert (grad - parameter.grad).abs().max() <= 1e-6 * max(scale, 1) + 1e-6 * scale, (
            key,
            name,
        )


# ---- under MMEngine

HEAD = {
    "type": "Shared4Conv1FCBBoxHead",
    "in_channels": 8,
    "conv_out_channels": 32,
    "fc_out_channels": 16,
    "num_classes": 3,
    "roi_feat_size": 3,
}
NORM_CFGS = {
    "ILMGN": {"type": "ILMGN", "num_groups": 4, "key_group_size": 8},
    "EN": {"type": "EN", "reduction": 8},
}


def box_head(key):
    import mmdet.models  # noqa: F401 - registers the head
    from mmengine.registry import MODELS

    import ilm_plugins  # noqa: F401 - registers the norms

    torch.manual_seed(0)
    with MODELS.switch_scope_and_registry("mmdet") as registry:
        head = registry.build({**HEAD, "norm_cfg": NORM_CFGS[key]})
    return head.double().train()


def loss(head, rois):
    scores, boxes = head(rois)
    return scores.square().sum() + boxes.sum()


def regions(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 8, 3, 3, generator=generator, dtype=torch.float64)


def openmmlab_gradients(rank, port):
    """What each of two processes does: its shares of some regions of interest."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for key in NORM_CFGS:
        for sizes in ((3, 3), (5, 1), (4, 0)):
            _openmmlab_gradients(rank, key, sizes)
    dist.barrier()
    dist.destroy_process_group()


def _openmmlab_gradients(rank, key, sizes):
    from mmengine.model import MMDistributedDataParallel

    rois = regions(sum(sizes))
    shares = rois.split(sizes)
    head = box_head(key)
    parallel = MMDistributedDataParallel(head, broadcast_buffers=False)
    # DistributedDataParallel averages over the processes.
    (loss(parallel, shares[rank]) * len(sizes)).backward()

    alone = box_head(key)
    # EN normalizes by the statistics of each process's own share.
    for share in shares if key == "EN" else (rois,):
        loss(alone, share).backward()
    own = dict(head.named_parameters())
    for name, parameter in alone.named_parameters():
        scale = parameter.grad.abs().max()
        error = (own[name].grad - parameter.grad).abs().max()
        assert error <= 1e-6 * scale, (key, sizes, name)
