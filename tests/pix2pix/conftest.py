"""A small training on the generated shapes, which the tests of pix2pix share."""

from functools import partial

import pytest

from runs import pix2pix_command


@pytest.fixture(scope="session")
def command(root, datasets):
    """A function that gives the arguments of a run on the generated shapes, of 8 pairs."""
    return partial(pix2pix_command, root, datasets)


@pytest.fixture(scope="session")
def trained(command, tmp_path_factory):
    """The output folder of two epochs, and of a test."""
    from ilm_plugins.cli import train

    out = tmp_path_factory.mktemp("trained")
    assert train.main(command(out=out)) == 0
    assert train.main(command("--eval-only", "--resume", out=out)) == 0
    return out
