"""What every test here needs: the small data set, and loggers that do not outlive a test."""

import logging

import pytest


@pytest.fixture(autouse=True)
def small_data_set(datasets):
    """Generate it before detectron2 looks for it and generates one of full size."""


@pytest.fixture(autouse=True)
def fresh_loggers():
    """detectron2 keeps handlers to streams that pytest closes."""
    yield
    from detectron2.utils.logger import setup_logger

    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
