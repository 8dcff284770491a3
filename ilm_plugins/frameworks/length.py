"""The length of a training, in iterations and in epochs of its training set."""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Length:
    """A number of epochs or iterations, 0 of an evaluation; None for what is unknown."""

    unit: str = "iterations"
    planned: int = 0
    #: Images of a step, over all processes, and of the whole training set.
    batch: int | None = None
    images: int | None = None

    @property
    def iterations(self) -> int | None:
        if self.unit == "iterations":
            return self.planned
        return self.planned * ceil(self.images / self.batch) if self.images and self.batch else None

    def __str__(self) -> str:
        parts, of_images = [], f" of {self.images:,} images" if self.images else ""
        if self.iterations is not None:
            of_batch = f" of {self.batch} image{'s' * (self.batch > 1)}" if self.batch else ""
            parts.append(f"{self.iterations:,} iterations{of_batch}")
        if self.unit == "epochs":
            parts.insert(0, f"{self.planned:,} epochs{of_images}")
        elif self.images and self.batch:
            epochs = self.planned * self.batch / self.images
            parts.append(f"{epochs:,.{0 if epochs >= 10 else 1}f} epochs{of_images}")
        return ", ".join(parts)
