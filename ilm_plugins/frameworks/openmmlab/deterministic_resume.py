"""Training that a resumed run continues exactly, from the middle of an epoch as well.

Whatever is random in an iteration is a function of the run's seed and of the iteration's number:
the order of an epoch's samples and their augmentation by :class:`ExactSampler`, and what the model
and others draw by :class:`ExactEpochLoop`. So nothing of it need be stored: a checkpoint has the
seed and the number.
"""

import math
import random
from collections.abc import Iterator, Sized

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, LOOPS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import Sampler

from ...layers import OptionError
from .norms import register

#: Sample's index, seed of the run, epoch.
Draw = tuple[int, int, int]


class ExactSampler(Sampler):
    """Shuffles anew for each epoch, by the seed and the epoch alone.

    Yields ``(index, seed, epoch)``, from which a data set can derive a sample's augmentation in
    whatever process it is loaded. Several processes share an epoch; the last ones start it over
    where their number does not divide it.

    Args:
        dataset: that from which to draw.
        shuffle: whether to; otherwise in order.
        seed: of the run, set by MMEngine's Runner.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset_size = len(dataset)
        self.shuffle = shuffle
        self.seed = seed or 0
        self.epoch = 0
        self.first = 0

    def start(self, seed: int, epoch: int, first: int) -> None:
        """Begin the next iteration of the sampler in an epoch, at its sample number ``first``."""
        self.seed, self.epoch, self.first = seed, epoch, first

    def __iter__(self) -> Iterator[Draw]:
        order = np.arange(self.dataset_size)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        order = np.resize(order, len(self) * self.world_size)[self.rank :: self.world_size]
        return ((int(index), self.seed, self.epoch) for index in order[self.first :])

    def __len__(self) -> int:
        return math.ceil(self.dataset_size / self.world_size)


class ExactEpochLoop(EpochBasedTrainLoop):
    """MMEngine's loop over epochs, which goes on in the middle of one and seeds each iteration.

    On one kind of machine, with deterministic kernels and as many processes, a run that is killed
    and resumed ends with the weights of an uninterrupted one, bit for bit on the CPU. Before each
    iteration the generators of Python, numpy and torch are seeded by the run's seed, the
    iteration and the process. Needs an :class:`ExactSampler`.

    Args:
        options: those of EpochBasedTrainLoop.

    Raises:
        OptionError: the loader has another sampler; or a checkpoint is resumed with epochs of
            another length.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        if not isinstance(self.dataloader.sampler, ExactSampler):
            raise OptionError(
                "ExactEpochLoop needs train_dataloader.sampler.type ExactSampler, got "
                f"{type(self.dataloader.sampler).__name__}"
            )

    def run_epoch(self) -> None:
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        first = self._iter - self._epoch * len(self.dataloader)
        if not 0 <= first <= len(self.dataloader):
            raise OptionError(
                f"the checkpoint is at iteration {self._iter} in epoch {self._epoch + 1}, but an "
                f"epoch has {len(self.dataloader)} iterations now; resume with the data, the "
                "batch size and the number of processes that it was trained with"
            )
        sampler = self.dataloader.sampler
        sampler.start(self.runner.seed, self._epoch, first * self.dataloader.batch_size)
        for index, batch in enumerate(self.dataloader, first):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx, data_batch) -> None:
        seed_all(self.runner.seed, self._iter, self.dataloader.sampler.rank)
        super().run_iter(idx, data_batch)


def seed_all(*entropy: int) -> None:
    """Seed the generators of Python, numpy and torch by a tuple of numbers."""
    seeds = np.random.SeedSequence(entropy).generate_state(3).tolist()
    for seed, seeded in zip(seeds, (random.seed, np.random.seed, torch.manual_seed), strict=True):
        seeded(seed)


register(LOOPS, classes={"ExactEpochLoop": ExactEpochLoop})
register(DATA_SAMPLERS, classes={"ExactSampler": ExactSampler})
