"""Several CPU processes under DistributedDataParallel, as detectron2 starts them."""

from datetime import timedelta

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.engine import launch

from workers import detectron2_synchronized

#: Instead of half an hour, in which a test would seem to hang.
PATIENCE = timedelta(seconds=60)
TWO = {"num_gpus_per_machine": 2, "dist_url": "auto", "timeout": PATIENCE}


@pytest.mark.wide
def test_statistics_of_all_processes():
    launch(detectron2_synchronized, **TWO)
