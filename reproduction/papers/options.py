"""The settings for runs of rows, apart from the code that makes the runs and needs torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The user's settings for all runs: the options of the command ``run``."""

    seeds: Sequence[int] = (0,)
    epochs: int | None = None
    iterations: int | None = None
    num_gpus: int | None = None
    data: Path | None = None
    work_dir: Path = Path("output/reproduce")
    overrides: Sequence[str] = ()
    unsafe: bool = False
