"""What all tests share: a seed for each, one thread, and a dataset of a few small images."""

import copy
import gc
import importlib
import os
import random
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import zlib
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

# Before torch is imported, and for all processes that tests start: pytest-xdist starts a worker for
# each core, and more threads than cores take turns.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts commands in the background with SIGINT ignored, which their processes inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
STAND_INS = Path(__file__).parent / "stand_ins"
DATASETS = Path(tempfile.mkdtemp(prefix="ilm_plugins-tests-"))
# detectron2 reads it once, when it registers its datasets. Hence no test may import this module,
# which would run it a second time under another name: `root` and the rest are fixtures.
os.environ["DETECTRON2_DATASETS"] = str(DATASETS)


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="of the random numbers of every test")
    parser.addoption("--strict-numbers", action="store_true", help="quarter every tolerance")
    parser.addoption("--norm", metavar="MODULE:CLASS", help="the only one that contract.py checks")


def pytest_configure(config):
    config.addinivalue_line("markers", "wide: beside the everyday tests; 'make test-wide' runs it")
    config.addinivalue_line("markers", "long: too long for make test and make test-wide")
    os.environ["ILM_PLUGINS_TEST_SEED"] = str(config.getoption("--seed"))
    os.environ["ILM_PLUGINS_TEST_STRICT"] = "1" if config.getoption("--strict-numbers") else ""
    if not hasattr(config, "workerinput"):
        # yapf, which MMEngine uses, caches its grammar in a file when it is first imported. Where
        # pytest-xdist's workers did so at the same time, one would read what another half wrote.
        with suppress(ImportError):
            importlib.import_module("yapf")
    # pytest-xdist's workers inherit this from the first process.
    if str(STAND_INS) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        paths = str(STAND_INS), os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        runpy.run_path(str(STAND_INS / "sitecustomize.py"))


def pytest_collection_finish(session):
    """Leave what is imported by now, half a million objects, out of all garbage collections."""
    quicken_frameworks()
    launches = any("launcher" in getattr(item, "fixturenames", ()) for item in session.items)
    if launches and "mmseg" in sys.modules:
        # Which the first training imports, in five seconds; each fork would do it again.
        importlib.import_module("mmseg.utils").register_all_modules(init_default_scope=False)
    gc.collect()
    gc.freeze()
    if launches:
        session.config.launcher = importlib.import_module("helpers.trainings").Launcher()


def quicken_frameworks():
    """Keep files of configs and model zoos; log no versions, and format no configs."""
    if "mmengine.runner" in sys.modules:
        from mmengine.runner import runner

        runner.collect_env = dict
    if "detectron2.engine" in sys.modules:
        from detectron2.engine import defaults

        defaults.collect_env_info = str
    if "mmengine" in sys.modules:
        from mmengine.config import Config, utils
        from yapf.yapflib import yapf_api

        # MMEngine formats its config six times a training, which was half of a small one.
        yapf_api.FormatCode = lambda text, **options: (text, True)
        utils.load = cache(utils.load)
        parse, parsed = Config._file2dict, {}

        def parse_once(filename, *args, **options):
            key = os.path.abspath(filename), os.stat(filename).st_mtime_ns, str((args, options))
            if key not in parsed:
                parsed[key] = parse(filename, *args, **options)
            return copy.deepcopy(parsed[key])

        Config._file2dict = staticmethod(parse_once)


def seed_generators(name=""):
    """Seed all generators by ``--seed``, and by a name for streams that must differ."""
    import torch

    seed = int(os.environ["ILM_PLUGINS_TEST_SEED"]) + zlib.crc32(name.encode()) % 2**16
    torch.manual_seed(seed)
    random.seed(seed)
    with suppress(ImportError):
        import numpy as np

        np.random.seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    """Seed each fixture, which gives the same whichever test is the first to ask for it."""
    seed_generators(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """Seed each test, which gives the same whatever ran before it."""
    seed_generators()


@pytest.fixture(scope="module", autouse=True)
def keys_of_papers_variants(request):
    """Leave the keys of ``reproduction.layers`` to tests/reproduction: others list all keys."""

    def variants():
        return getattr(sys.modules.get("reproduction.layers"), "VARIANTS", {})

    if "reproduction" in request.path.parts and variants():
        importlib.import_module("ilm_plugins").NORMS.update(variants())
    yield
    for key in variants():
        importlib.import_module("ilm_plugins").NORMS.pop(key, None)


def pytest_unconfigure():
    shutil.rmtree(DATASETS, ignore_errors=True)


@pytest.fixture(scope="session")
def datasets():
    """The folder DETECTRON2_DATASETS, which holds eight training and four validation images."""
    pytest.importorskip("PIL", reason="needs Pillow, of the extra ilm_plugins[data]")
    from ilm_plugins.shapes.dataset import write_shapes

    write_shapes(DATASETS, num_training=8, num_validation=4, size=64)
    if "detectron2" in sys.modules:
        from ilm_plugins.shapes.detectron2 import register_datasets

        register_datasets()
    return DATASETS


@pytest.fixture(scope="session")
def launcher(request):
    """The process that runs commands on request, see :class:`helpers.trainings.Launcher`."""
    return request.config.launcher


@pytest.fixture(scope="session")
def root():
    """The root of the project's checkout."""
    return ROOT


@pytest.fixture
def small_files():
    """A context in which writing more than a number of bytes to a file fails, as on a full disk."""

    @contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Compiled modules would be cut off, and stay so for later imports.
        sys.dont_write_bytecode, writes = True, sys.dont_write_bytecode
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            sys.dont_write_bytecode = writes

    return limit
