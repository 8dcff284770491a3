"""Several CPU processes under MMEngine's DistributedDataParallel, over gloo."""

import pytest

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

from torch.multiprocessing import spawn

from workers import free_port, openmmlab_synchronized


@pytest.mark.wide
def test_statistics_of_all_processes():
    spawn(openmmlab_synchronized, (free_port(),), nprocs=2)
