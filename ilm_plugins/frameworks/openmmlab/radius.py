"""An MMEngine hook that sets the radius of SSN."""

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.optim import Optimizer

from ..radius import RadiusSchedule
from .norms import register


class RadiusHook(Hook):
    """Let the radius of every SSN layer grow from 0 to 1, linearly in the iterations of a training.

    In a config: ``custom_hooks = [dict(type="RadiusHook")]``. The gradients of each set of SSN's
    logits are clipped to the norm 1 before each step of the optimizer. Frozen layers keep their
    radius.
    """

    def before_train(self, runner) -> None:
        self.schedule = RadiusSchedule(runner.model, optimizers(runner))

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.schedule.set(runner.iter, runner.max_iters)


def optimizers(runner: Runner) -> list[Optimizer]:
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [wrapper.optimizer for wrapper in wrappers]


def register_hook(_module) -> None:
    register(HOOKS, classes={"RadiusHook": RadiusHook})
