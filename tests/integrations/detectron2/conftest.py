"""Loggers that do not outlive a test: detectron2 keeps handlers to streams that pytest closes."""

import logging

import pytest


@pytest.fixture(autouse=True)
def fresh_loggers():
    yield
    from detectron2.utils.logger import setup_logger

    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
