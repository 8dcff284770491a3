"""What a folder of a training tells, whichever framework has written it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reading:
    """What a run was and what it came to.

    Attributes:
        unit, run, planned, recipe: how far it came, how far it was to go, and how far its config
            goes, in "epochs" or "iterations"; 0 of a test alone.
        changes: what else of the recipe it changed; ``overrides``: all that it changed.
        log: the text of its last log.
        curve: by epoch, or by iteration in a hundred steps, the means of what was logged.
        seconds: of its training.
        metrics: options of a test -> its metrics; ``tested``: those of the tests made.
        checkpoint: what was tested, where nothing was trained.
        references: name -> metrics of an answer to compare with.
        seed: of its random numbers; packed: whether its images come from re-encoded ones.
        images, recipe_images: of how many images it was trained, and of how many its recipe is,
            as far as that can be told; test_images, recipe_test_images: likewise of its tests.
        batches: the images of a batch of all its processes; recipe_batch: of the recipe's.
    """

    unit: str
    run: int
    planned: int
    recipe: int
    changes: dict[str, Any]
    overrides: list[str]
    log: str
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    metrics: Mapping[tuple[str, ...], dict[str, float]] = field(default_factory=dict)
    tested: Sequence[tuple[str, ...]] = ()
    checkpoint: str | None = None
    references: Mapping[str, dict[str, float]] = field(default_factory=dict)
    seed: int | None = None
    packed: bool = False
    images: int | None = None
    recipe_images: int | None = None
    test_images: int | None = None
    recipe_test_images: int | None = None
    batches: Sequence[int] = ()
    recipe_batch: int | None = None
