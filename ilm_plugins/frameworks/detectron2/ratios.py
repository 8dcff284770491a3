"""A detectron2 hook that logs EN's, SN's and SSN's ratios."""

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from ...analysis.collect import MeansOfRatios


class RatiosHook(HookBase):
    """Log the mean ratios of every EN, SN and SSN layer, as ``ratios/LAYER/NORMALIZER``.

    They go to the trainer's EventStorage; register this hook before a PeriodicWriter, which writes
    them to TensorBoard and ``metrics.json``. Each is a mean over one training batch of rank 0.

    Args:
        interval: iterations from one logged batch to the next; other batches cost nothing.

    Raises:
        UserError: when training starts, if the model has no EN, SN or SSN layers.
    """

    def __init__(self, interval: int = 100) -> None:
        self.interval = interval

    def before_train(self) -> None:
        model = self.trainer.model
        self.means = MeansOfRatios(
            model.module if isinstance(model, DistributedDataParallel) else model
        )

    def before_step(self) -> None:
        if comm.is_main_process() and (self.trainer.iter + 1) % self.interval == 0:
            self.means.start()

    def after_step(self) -> None:
        for name, mean in self.means.stop().items():
            self.trainer.storage.put_scalar(name, mean, smoothing_hint=False)
