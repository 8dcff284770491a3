"""What tests run in processes of their own, which find it by this module's name."""

import os
import socket
from contextlib import nullcontext

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ilm_plugins import NORMS


class Harmful:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.makedirs, (self.path, 0o777, True)


def fail(rank, kind):
    """Raise, in a process that torch has spawned."""
    from ilm_plugins.integrations import training

    if kind == "defect":
        raise ZeroDivisionError
    raise getattr(training, kind)("what came in; what to do")


# ---- gradients of several processes


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def join(rank, size, port):
    """Enter a group over gloo."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)


def leave():
    dist.barrier()
    dist.destroy_process_group()


def check_gradients(make, wrap, batch, sizes, separate, steps=1):
    """Compare the gradients of several processes, which share a batch, with those of one.

    Args:
        make: what gives the model.
        wrap: what makes it DistributedDataParallel.
        batch: of all processes.
        sizes: of each process's share.
        separate: whether a model normalizes by the statistics of what each call is given.
        steps: passes over which gradients are accumulated.
    """

    def parts(share):
        return [share[step::steps] for step in range(steps)]

    shares = batch.split(sizes)
    model = make()
    parallel = wrap(model)
    mine = parts(shares[dist.get_rank()])
    for part in mine:
        with parallel.no_sync() if part is not mine[-1] else nullcontext():
            # DistributedDataParallel averages over the processes.
            (parallel(part).square().sum() * len(sizes)).backward()
    alone = make()
    for share in shares if separate else (batch,):
        for part in parts(share):
            alone(part).square().sum().backward()
    own = dict(model.named_parameters())
    for name, parameter in alone.named_parameters():
        scale = parameter.grad.abs().max()
        error = (own[name].grad - parameter.grad).abs().max()
        assert error <= 1e-6 * scale, (sizes, name, error / scale)


def images(count, channels=3, size=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


def small_model(key):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 64, 3), NORMS[key](64), nn.ReLU(), nn.Conv2d(64, 1, 3)
    return nn.Sequential(*layers).double()


def gradients(rank, size, port, shares):
    """Every layer under torch's own DistributedDataParallel, for several ways to share a batch."""
    join(rank, size, port)
    for key in NORMS:
        for sizes in shares:
            for steps in (1, 2):
                check_gradients(
                    lambda key=key: small_model(key),
                    lambda model: DistributedDataParallel(model, find_unused_parameters=False),
                    images(sum(sizes)),
                    sizes,
                    separate=key in ("EN", "SN"),
                    steps=steps,
                )
    leave()


def detectron2_gradients(sizes):
    """Every layer, as detectron2 wraps its models, in processes that it has started."""
    from ilm_plugins.integrations.detectron2.train import create_ddp_model

    torch.set_num_threads(1)
    for key in NORMS:
        check_gradients(
            lambda key=key: small_model(key),
            lambda model: create_ddp_model(model, broadcast_buffers=False),
            images(sum(sizes)),
            sizes,
            separate=key in ("EN", "SN"),
        )


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


class BoxHead(nn.Module):
    """mmdet's box head, whose two outputs are one."""

    def __init__(self, key):
        super().__init__()
        import mmdet.models  # noqa: F401 - registers the head
        from mmengine.registry import MODELS

        import ilm_plugins  # noqa: F401 - registers the norms

        torch.manual_seed(0)
        with MODELS.switch_scope_and_registry("mmdet") as registry:
            self.head = registry.build({**HEAD, "norm_cfg": NORM_CFGS[key]}).double()

    def forward(self, rois):
        return torch.cat(self.head(rois), 1)


def openmmlab_gradients(rank, port):
    """What each of two processes does: its shares of some regions of interest."""
    from mmengine.model import MMDistributedDataParallel

    join(rank, 2, port)
    for key in NORM_CFGS:
        for sizes in ((3, 3), (5, 1), (4, 0)):
            check_gradients(
                lambda key=key: BoxHead(key),
                lambda model: MMDistributedDataParallel(model, broadcast_buffers=False),
                images(sum(sizes), channels=8, size=3),
                sizes,
                separate=key == "EN",
            )
    leave()
