"""The interface by which :mod:`ilm_plugins.reproduction` reads configs and run folders.

A recipe is a config as it is in the repository; a run may shorten it or have fewer images.
:mod:`.detectron2.run_folder` and :mod:`.openmmlab.run_folder` implement the interface.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

#: An evaluation, named by its options of tools/train_net.py: () or ("--tta",).
Test = tuple[str, ...]


@dataclass
class RunSummary:
    """The contents of a run folder.

    Attributes:
        run: number of epochs or iterations at the last checkpoint; 0 if nothing was trained.
        curve: means of the logged losses and metrics, one dict for each epoch or for each
            hundredth of the iterations; see :func:`.curves.means`.
        seconds: duration of the training.
        metrics: test -> its metrics, by the framework's names.
        references: name of a trivial prediction -> its metrics, to compare with.
        images, recipe_images: number of training images of the run, and of the recipe; None if
            unknown.
        test_images, recipe_test_images: the same for the test images.
    """

    run: int
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    metrics: Mapping[Test, dict[str, float]] = field(default_factory=dict)
    references: Mapping[str, dict[str, float]] = field(default_factory=dict)
    images: int | None = None
    recipe_images: int | None = None
    test_images: int | None = None
    recipe_test_images: int | None = None


class RunFolders(Protocol):
    """The functions and constants that a framework's module ``run_folder`` must have.

    The module of each framework implements them as functions, without ``self``. In all of them
    ``config`` is the path of a config file, ``work_dir`` a run's output folder. Overrides are
    words of the command line of tools/train_net.py that change settings of the config.
    """

    #: Key of the setting with the checkpoint that a training starts from.
    PRETRAINED: str
    #: Settings that don't change the experiment: paths, loader workers, logging, checkpoints.
    HARMLESS: re.Pattern[str]

    def length(self, config: str) -> tuple[int, str]:
        """Return the length of a config's training, and its unit: "epochs" or "iterations"."""

    def batch(self, config: str, overrides: Sequence[str], processes: int) -> tuple[int, int]:
        """Return the images in a batch over all processes, and those in the recipe's batch."""

    def run_overrides(self, config: str, work_dir: Path, seed: int) -> list[str]:
        """Return overrides that set the run folder and the seed."""

    def length_overrides(self, config: str, new: int) -> list[str]:
        """Return overrides that train for ``new`` epochs or iterations.

        The schedule's steps move to the same fractions of the training; the warm-up stays.
        """

    def data_overrides(self, config: str, folder: str) -> list[str]:
        """Return overrides that take the images from a folder.

        Raises:
            UserError: the folder does not exist.
        """

    def augmentation_overrides(self, config: str) -> list[str]:
        """Return overrides that augment a whole batch at once, on the model's device.

        Raises:
            UserError: the config does not augment as the recipes of CIFAR do.
        """

    def environment(self, folder: str | Path) -> dict[str, str]:
        """Return environment variables that take the images from a folder."""

    def to_words(self, pairs: Sequence[str]) -> list[str]:
        """Convert overrides KEY=VALUE to the syntax of this framework on the command line."""

    def start_overrides(self, checkpoint: str) -> list[str]:
        """Return overrides that start a training from a checkpoint."""

    def test_overrides(self, checkpoint: str) -> list[str]:
        """Return overrides that test a checkpoint."""

    def prediction_overrides(self, config: str, folder: Path) -> list[str]:
        """Return overrides that write predictions for a benchmark's server, if any, to a folder."""

    def progress(self, work_dir: Path) -> tuple[int, str | None]:
        """Return a run's last checkpoint as its epoch or iteration and its file, or 0, None."""

    def is_complete(self, work_dir: Path, total: int) -> bool:
        """Whether a run trained for ``total`` epochs or iterations and made its final test."""

    def tests(self, config: str, wanted: Iterable[Test]) -> list[Test]:
        """Return the wanted tests that a config supports and its training does not include."""

    def tests_made(self, work_dir: Path, checkpoint: str | None = None) -> set[Test]:
        """Return the tests made since the last training; only those of ``checkpoint`` if given."""

    def summary(self, config: str, work_dir: Path, total: int) -> RunSummary:
        """Read a run folder; each framework's module ``run_folder`` implements it.

        Args:
            config: path of the recipe's config file.
            work_dir: the run's output folder.
            total: epochs or iterations that the run trains for; 0 if it only tests.

        Raises:
            UserError: the folder holds no run.
        """
