"""An MMEngine hook that logs EN's, SN's and SSN's ratios."""

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ...analysis.collect import MeansOfRatios
from .norms import register


class RatiosHook(Hook):
    """Log the mean ratios of every EN, SN and SSN layer, as ``ratios/LAYER/NORMALIZER``.

    In a config: ``custom_hooks = [dict(type="RatiosHook", interval=100)]``. The visualizer writes
    them to its backends, such as TensorBoard and ``vis_data/scalars.json``, not to the console.
    Each value is a mean over one training batch of rank 0.

    Args:
        interval: iterations from one logged batch to the next; other batches cost nothing.

    Raises:
        UserError: when training starts, if the model has no EN, SN or SSN layers.
    """

    priority = "LOW"

    def __init__(self, interval: int = 100) -> None:
        self.interval = interval

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.means = MeansOfRatios(model)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if is_main_process() and self.every_n_train_iters(runner, self.interval):
            self.means.start()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        scalars = self.means.stop()
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)


register(HOOKS, classes={"RatiosHook": RatiosHook})
