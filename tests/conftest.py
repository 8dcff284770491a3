"""A data set of a few small images for every test that trains, in a folder of each process."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATASETS = Path(tempfile.mkdtemp(prefix="ilm_plugins-tests-"))
# detectron2 reads it once, when it registers its data sets. Hence no test may import this module,
# which would run it a second time under another name: `root` and the rest are fixtures.
os.environ["DETECTRON2_DATASETS"] = str(DATASETS)


def pytest_configure(config):
    config.addinivalue_line("markers", "long: too long for every day; 'make test-all' runs it")


def pytest_unconfigure():
    shutil.rmtree(DATASETS, ignore_errors=True)


@pytest.fixture(scope="session")
def datasets():
    """The folder DETECTRON2_DATASETS, which holds eight training and four validation images."""
    pytest.importorskip("shapely", reason="needs shapely, of the extra ilm_plugins[data]")
    from ilm_plugins.data.shapes import write_shapes

    write_shapes(DATASETS, num_training=8, num_validation=4, size=64)
    return DATASETS


@pytest.fixture(scope="session")
def root():
    """The root of the project's checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_coco():
    """A folder with a few real images in COCO's layout, where one lies beside the checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "coco" / "annotations" / "instances_val2017.json").exists():
        pytest.skip("no real images at ../shared/data/coco")
    return folder
