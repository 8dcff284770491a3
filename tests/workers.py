"""What tests run in processes of their own, which find it by this module's name."""

import itertools
import os
import socket
import time
import warnings
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed.fsdp
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ilm_plugins import NORMS
from ilm_plugins.frameworks.launch import leave_group


class Harmful:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.makedirs, (self.path, 0o777, True)


# ---- gradients of several processes


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def join(rank, size, port):
    """Enter a group over gloo."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    # Gloo's own is half an hour, in which a test would seem to hang.
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=patience)


def own_gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def check_gradients(make, wrap, batch, sizes, separate, steps=1, read=None):
    """Compare the gradients of several processes, which share a batch, with those of one.

    Args:
        make: what gives the model.
        wrap: what makes it DistributedDataParallel, or shards it.
        batch: of all processes.
        sizes: of each process's share.
        separate: whether a model normalizes by the statistics of what each call is given.
        steps: passes over which gradients are accumulated.
        read: of a sharded model, what gives the whole gradients by the parameters' names.
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
    found = read(parallel) if read else own_gradients(model)
    for name, expected in own_gradients(alone).items():
        scale = expected.abs().max()
        error = (found[name] - expected).abs().max()
        assert error <= 1e-6 * scale, (sizes, name, error / scale)


def images(count, channels, size):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


def small_model(key):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 64, 3), NORMS[key](64), nn.ReLU(), nn.Conv2d(64, 1, 3)
    return nn.Sequential(*layers).double()


def check_layers(wrap, shares, keys=NORMS, make=small_model, maps=(3, 8), steps=(1,), read=None):
    """Compare the gradients of every layer, for several ways to share a batch.

    Args:
        wrap, read: as for :func:`check_gradients`.
        shares: the sizes of the processes' shares, for each way.
        keys: of the layers.
        make: what gives the model with a layer.
        maps: channels and size of the images.
        steps: passes over which gradients are accumulated, one after the other.
    """
    for key, sizes, passes in itertools.product(keys, shares, steps):
        check_gradients(
            lambda key=key: make(key),
            wrap,
            images(sum(sizes), *maps),
            sizes,
            separate=key in ("EN", "SN"),
            steps=passes,
            read=read,
        )
    leave_group()


def gradients(rank, size, port, shares):
    """Every layer under torch's own DistributedDataParallel."""
    join(rank, size, port)
    check_layers(DistributedDataParallel, shares, steps=(1, 2))


def by_fsdp(model):
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process shards nothing
        device = torch.device("cpu")
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=device)


def gradients_of_fsdp(model):
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        return {name: grad.clone() for name, grad in own_gradients(model).items()}


def by_fully_shard(model):
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for child in model:
        if list(child.parameters()):
            fully_shard(child, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gradients_of_fully_shard(model):
    return {name: grad.full_tensor() for name, grad in own_gradients(model).items()}


SHARDED = {
    "FSDP": (by_fsdp, gradients_of_fsdp),
    "fully_shard": (by_fully_shard, gradients_of_fully_shard),
}


def without(kind):
    """Why torch cannot wrap a model so; None where it can."""
    if kind == "fully_shard" and not hasattr(torch.distributed.fsdp, "fully_shard"):
        return "torch.distributed.fsdp.fully_shard is public from torch 2.6 on"
    return None


def sharded_gradients(rank, size, port, kind, shares):
    """Every layer with its parameters in shards."""
    join(rank, size, port)
    wrap, read = SHARDED[kind]
    check_layers(wrap, shares, read=read)


def detectron2_gradients(sizes):
    """Every layer, as detectron2 wraps its models, in processes that it has started."""
    from ilm_plugins.frameworks.detectron2.train import create_ddp_model

    torch.set_num_threads(1)
    check_layers(lambda model: create_ddp_model(model, broadcast_buffers=False), [sizes])


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
    """Box heads of mmdet's, in two processes, with their shares of some regions of interest."""
    from mmengine.model import MMDistributedDataParallel

    join(rank, 2, port)

    def wrap(model):
        return MMDistributedDataParallel(model, broadcast_buffers=False)

    check_layers(wrap, ((3, 3), (5, 1), (4, 0)), NORM_CFGS, BoxHead, maps=(8, 3))


# ---- signals


def rest(pids):
    """Say its number, and wait for a signal, which may come before the first sleep begins."""
    pids.put(os.getpid())
    for _ in range(6000):
        time.sleep(0.1)
