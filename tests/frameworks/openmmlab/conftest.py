"""A small segmenter of MMEngine's, and a training of it that tests may copy but not change."""

import pytest

from helpers.trainings import mmengine_command, write_mmengine_config
from ilm_plugins.__main__ import main


@pytest.fixture(scope="session")
def config(datasets, tmp_path_factory):
    return write_mmengine_config(tmp_path_factory.mktemp("config") / "fcn.py", datasets)


@pytest.fixture(scope="session")
def trained(config, tmp_path_factory):
    """The output folder of four iterations, with checkpoints of the second and the fourth."""
    out = tmp_path_factory.mktemp("trained")
    assert main(mmengine_command(config, out=out)) == 0
    return out
