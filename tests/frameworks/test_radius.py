"""The hooks of both frameworks that set SSN's radius and clip its logits' gradients."""

import pytest
import torch
from torch import nn

from close import assert_close
from ilm_plugins import SparseSwitchNorm, freeze
from ilm_plugins.frameworks.radius import RadiusSchedule

#: Iterations of a whole training here, and the rate at which logits learn.
LENGTH, LEARNING_RATE = 5, 0.1


class Small(nn.Module):
    """A norm whose loss is steep; remembers, of each pass, the radius and the logits of means."""

    def __init__(self, norm=SparseSwitchNorm):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.frozen, self.seen = norm(4), freeze(norm(4)).requires_grad_(False), []
        self.register_buffer("weights", torch.randn(2, 4, 3, 3))

    def loss(self, images):
        if isinstance(self.norm, SparseSwitchNorm):
            logits = self.norm.mean_weight.detach().clone()
            self.seen.append((round(self.norm.radius.item(), 6), logits))
        return 1e4 * (self.frozen(self.norm(images)) * self.weights).square().sum()


def images():
    generator = torch.Generator().manual_seed(1)
    shifts = torch.arange(8.0).view(2, 4, 1, 1)
    return shifts + torch.randn(2, 4, 3, 3, generator=generator)


def sgd(model):
    """Logits learn fast, and all else too slowly to change the loss."""
    parts = {True: [], False: []}
    for name, parameter in model.norm.named_parameters():
        parts[name.endswith("_weight")].append(parameter)
    return torch.optim.SGD(
        [{"params": parts[True]}, {"params": parts[False], "lr": 1e-9}], lr=LEARNING_RATE
    )


def train_in_mmengine(model, folder, start=0):
    runners = pytest.importorskip("mmengine.runner", reason="needs MMEngine")
    from mmengine.model import BaseModel

    class Wrapped(BaseModel):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, inputs, mode="tensor"):
            return {"loss": self.inner.loss(inputs)}

    wrapped = Wrapped()
    runner = runners.Runner(
        wrapped,
        str(folder),
        train_dataloader=torch.utils.data.DataLoader(
            # At the end of its images, MMEngine waits for seconds.
            [{"inputs": image} for image in images()] * LENGTH,
            batch_size=2,
        ),
        train_cfg={"by_epoch": False, "max_iters": LENGTH},
        optim_wrapper={"optimizer": sgd(model)},
        custom_hooks=[{"type": "RadiusHook"}],
        default_hooks={"checkpoint": None},
        experiment_name=folder.name,
        log_level="ERROR",
    )
    runner.train_loop  # noqa: B018  builds the loop
    runner.train_loop._iter = start
    runner.train()


def train_in_detectron2(model, folder, start=0):
    engine = pytest.importorskip("detectron2.engine", reason="needs detectron2")
    from ilm_plugins.frameworks.detectron2.radius import RadiusHook

    model.forward = lambda batch: {"loss": model.loss(batch)}
    trainer = engine.SimpleTrainer(model, [images()] * LENGTH, sgd(model))
    trainer.register_hooks([RadiusHook()])
    trainer.train(start, LENGTH)


frameworks = pytest.mark.parametrize("train", [train_in_mmengine, train_in_detectron2])


@frameworks
@pytest.mark.parametrize("start", [0, 3])
def test_the_radius_is_the_part_of_the_iterations_that_are_done(train, start, tmp_path):
    model = Small()
    train(model, tmp_path, start)
    radii = [radius for radius, _ in model.seen]
    assert radii == [round(i / LENGTH, 6) for i in range(start, LENGTH)]
    assert model.frozen.radius == 0
    (_, first), (_, second), *_ = model.seen
    moved = (second - first).norm().item() / LEARNING_RATE
    assert abs(moved - 1) < 1e-3, f"logits' gradients are clipped to the norm {moved}, not 1"
    assert (model.norm.weight - 1).norm() > 1e-9 * (LENGTH - start), "the weight's are not clipped"


def test_a_fused_optimizers_scaled_gradients_are_clipped_to_the_scaled_norm():
    moved = []
    for scale in (1.0, 2.0**16):
        model = Small()
        optimizer = torch.optim.SGD(model.norm.parameters(), lr=LEARNING_RATE, fused=True)
        RadiusSchedule(model, [optimizer])
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        before = model.norm.mean_weight.detach().clone()
        scaler.scale(model.loss(images())).backward()
        scaler.step(optimizer)
        moved.append(model.norm.mean_weight.detach() - before)
    assert_close(moved[1], moved[0])
    assert abs(moved[0].norm().item() / LEARNING_RATE - 1) < 1e-3
