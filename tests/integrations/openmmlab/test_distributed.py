"""Several CPU processes under MMEngine's DistributedDataParallel, over gloo."""

import socket

import pytest

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

from torch.multiprocessing import spawn

from workers import openmmlab_gradients


def test_gradients_of_a_box_head_in_two_processes():
    """Also where one process has no proposals: the other must not wait in vain."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    spawn(openmmlab_gradients, (port,), nprocs=2)
