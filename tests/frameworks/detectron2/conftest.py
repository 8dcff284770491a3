"""What every test here needs: the small dataset, and loggers that do not outlive a test."""

import logging

import pytest


@pytest.fixture(autouse=True)
def fresh_loggers(datasets):
    """detectron2 would generate a dataset of full size, and keeps handlers to closed streams."""
    yield
    from detectron2.utils.logger import setup_logger

    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
