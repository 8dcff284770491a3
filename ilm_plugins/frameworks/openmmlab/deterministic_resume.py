"""Training that resumes exactly: with the same random numbers, also in the middle of an epoch.

All random numbers depend only on the run's seed and the number of the iteration, so a checkpoint
need not store the state of generators. :class:`ExactSampler` determines the order of samples and
their augmentation; :class:`ExactEpochLoop` seeds the generators before each iteration.
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

#: One sample to load: index in the data set, seed of the run, epoch.
Draw = tuple[int, int, int]


class ExactSampler(Sampler):
    """A sampler whose order in each epoch depends only on the seed and the epoch.

    Yields ``(index, seed, epoch)``, from which a data set can derive a sample's augmentation in
    any process. Each of several processes gets an equal share of an epoch; if their number does
    not divide the data set's length, the first samples are repeated at the end.

    Args:
        dataset: the data set; only its length is used.
        shuffle: whether to shuffle the samples.
        seed: the seed of the run; MMEngine's Runner passes it.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset_size = len(dataset)
        self.shuffle = shuffle
        self.seed = seed or 0
        self.epoch = 0
        self.first = 0

    def start(self, seed: int, epoch: int, first: int) -> None:
        """Set the epoch to iterate over next, and how many of this process's samples to skip."""
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
    """MMEngine's loop over epochs, which can resume within an epoch and seeds each iteration.

    Before each iteration the generators of Python, numpy and torch are seeded from the run's seed,
    the iteration and the rank. On one kind of machine, with deterministic kernels and the same
    number of processes, a run that is killed and resumed therefore ends with the same weights as
    an uninterrupted run, bit for bit on the CPU. Needs an :class:`ExactSampler`.

    Args:
        args, options: positional and keyword arguments of EpochBasedTrainLoop.

    Raises:
        OptionError: the loader has another sampler; or a run is resumed with another number of
            iterations in an epoch than its checkpoint had.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        if not isinstance(self.dataloader.sampler, ExactSampler):
            raise OptionError(
                "ExactEpochLoop needs train_dataloader.sampler.type ExactSampler, got "
                f"{type(self.dataloader.sampler).__name__}"
            )

    def run_epoch(self) -> None:
        """Train for the rest of the current epoch, from the loop's iteration.

        Sets the model to training mode, calls the hooks before and after the epoch, and advances
        the loop's epoch by 1. At the end of an epoch, only these hooks run.

        Raises:
            OptionError: the iteration is not in this epoch: the checkpoint is of a run whose epochs
                had another length.
        """
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
        """Seed all generators, then train on a batch."""
        seed_all(self.runner.seed, self._iter, self.dataloader.sampler.rank)
        super().run_iter(idx, data_batch)


def seed_all(*entropy: int) -> None:
    """Seed the generators of Python, numpy and torch from non-negative integers."""
    seeds = np.random.SeedSequence(entropy).generate_state(3).tolist()
    for seed, seeded in zip(seeds, (random.seed, np.random.seed, torch.manual_seed), strict=True):
        seeded(seed)


register(LOOPS, classes={"ExactEpochLoop": ExactEpochLoop})
register(DATA_SAMPLERS, classes={"ExactSampler": ExactSampler})
