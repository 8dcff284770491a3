"""A detectron2 hook that sets the radius of SSN."""

from detectron2.engine import HookBase

from ..radius import RadiusSchedule


class RadiusHook(HookBase):
    """Let the radius of every SSN layer grow from 0 to 1, linearly in the iterations of a training.

    The gradients of each set of SSN's logits are clipped to the norm 1 before each step of the
    optimizer. Frozen layers keep their radius. The command ``train`` has this hook; in a trainer of
    your own, call ``trainer.register_hooks([RadiusHook()])``.
    """

    def before_train(self) -> None:
        self.schedule = RadiusSchedule(self.trainer.model, [self.trainer.optimizer])

    def before_step(self) -> None:
        self.schedule.set(self.trainer.iter, self.trainer.max_iter)
