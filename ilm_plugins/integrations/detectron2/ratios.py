"""EN's and SN's ratios while detectron2 trains."""

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from ...analysis.collect import MeansOfRatios


class RatiosHook(HookBase):
    """Puts the mean ratios of every EN and SN layer into the EventStorage:
    ``ratios/LAYER/NORMALIZER``.

    From there detectron2's writers bring them to TensorBoard and ``metrics.json``, for which it is
    to be registered before a PeriodicWriter. They are those of one training batch, of the first
    process.

    Args:
        interval: iterations from one batch to the next; in between nothing is computed.

    Raises:
        UserError: when training starts, the model has no such layers.
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
