"""What :mod:`ilm_plugins.reproduction` asks of a framework: its configs and its run folders.

:mod:`.detectron2.run_folder` and :mod:`.openmmlab.run_folder` answer it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

#: A test, by the options of tools/train_net.py that it takes: () or ("--tta",).
Test = tuple[str, ...]


@dataclass
class RunSummary:
    """What a run folder holds.

    Attributes:
        run: epochs or iterations of the last checkpoint; 0 if nothing was trained.
        curve: means of the logged losses and metrics, by epoch or in a hundred steps of iterations.
        seconds: duration of the training.
        metrics: test -> its metrics, by the framework's names.
        checkpoint: file that was tested, if nothing was trained.
        references: name -> metrics of a trivial prediction, to compare with.
        images, recipe_images: training images that were found, and those that the recipe has; None
            if unknown.
        test_images, recipe_test_images: the same of the tests.
    """

    run: int
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    metrics: Mapping[Test, dict[str, float]] = field(default_factory=dict)
    checkpoint: str | None = None
    references: Mapping[str, dict[str, float]] = field(default_factory=dict)
    images: int | None = None
    recipe_images: int | None = None
    test_images: int | None = None
    recipe_test_images: int | None = None


class RunFolders(Protocol):
    """A framework's configs and run folders, as a module.

    ``config`` is the path of a config file; overrides are words of tools/train_net.py's command
    line.
    """

    #: Setting with the checkpoint that a training starts from.
    PRETRAINED: str
    #: Settings that don't change the experiment: paths, loader workers, logging, checkpoints.
    HARMLESS: re.Pattern[str]

    def length(self, config: str) -> tuple[int, str]:
        """How long a config trains, and its unit: "epochs" or "iterations"."""

    def batch(self, config: str, overrides: Sequence[str], processes: int) -> tuple[int, int]:
        """Images of a batch over all processes, and of the recipe's batch."""

    def settings(self, config: str, work_dir: Path, seed: int) -> list[str]:
        """Overrides that set the run folder and the seed."""

    def shortened(self, config: str, new: int) -> list[str]:
        """Overrides that train for ``new`` epochs or iterations.

        The schedule's steps move to the same fractions of the training; the warm-up stays.
        """

    def on_data(self, config: str, folder: str) -> list[str]:
        """Overrides that take the images from a folder.

        Raises:
            UserError: the folder does not exist.
        """

    def environment(self, folder: str | Path) -> dict[str, str]:
        """Environment variables that take the images from a folder."""

    def spelled(self, pairs: Sequence[str]) -> list[str]:
        """KEY=VALUE words as tools/train_net.py takes them for this framework."""

    def starting_from(self, checkpoint: str) -> list[str]:
        """Overrides that start a training from a checkpoint."""

    def testing(self, checkpoint: str) -> list[str]:
        """Overrides that test a checkpoint."""

    def progress(self, work_dir: Path) -> tuple[int, str | None]:
        """Epochs or iterations of a run's last checkpoint, and its file; 0 and None without one."""

    def complete(self, work_dir: Path, total: int) -> bool:
        """Whether a run has trained for ``total``, with the test that ends the training."""

    def tests(self, config: str, wanted: Iterable[Test]) -> list[Test]:
        """The wanted tests that a config supports and that are commands of their own."""

    def tests_made(self, work_dir: Path, checkpoint: str | None = None) -> set[Test]:
        """Tests since the last training; with ``checkpoint``, those of that file."""

    def summary(self, config: str, work_dir: Path, total: int) -> RunSummary:
        """Read a run folder.

        Args:
            total: epochs or iterations that the run trains for; 0 if it only tests.

        Raises:
            UserError: the folder holds no run.
        """
