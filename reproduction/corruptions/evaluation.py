"""Tests of trained models on corrupted images, BN also with the test images' statistics."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional

from ilm_plugins import checkpoints
from ilm_plugins.frameworks import last_checkpoint, open_config, read_record
from ilm_plugins.frameworks.openmmlab.standardize_image import StandardizeImage

from .corruptions import CORRUPTIONS, corrupt
from .records import OWN_TEST

#: CIFAR-10's images as files, {train,test}/CLASS/NUMBER.jpg.
CIFAR10 = Path("data/cifar10_images")
#: The corrupted test images, a file for each corruption.
CORRUPTED = Path("data/cifar10_corrupted")
#: Images of a step; a multiple of all batches whose statistics are used.
STEP = 400
#: Numbers of test images whose statistics BatchNorm uses.
BATCHES = 200, 16, 1
#: Name of a change of CamVid's images -> the transform.
CHANGES: dict[str, dict[str, Any]] = {
    "noise0.1": dict(name="gaussian_noise", sigma=0.1),
    "blur2": dict(name="gaussian_blur", kernel_size=17, sigma=2.0),
    "gamma0.5": dict(name="adjust_gamma", gamma=2.0),
    "jpeg15": dict(name="jpeg", quality=15),
}
HALF_CONTRAST: dict[str, Any] = dict(name="adjust_contrast", contrast_factor=0.5)


def cifar10_files(part: str = "test") -> tuple[list[Path], list[int]]:
    """Return the files of "train" or "test" in the order of their numbers, and their labels."""
    files = sorted((CIFAR10 / part).glob("*/*.jpg"), key=lambda path: path.name)
    classes = sorted({path.parent.name for path in files})
    return files, [classes.index(path.parent.name) for path in files]


def write_held_out() -> None:
    """Write the lists of each tenth training image, held_out.txt, and of the others, fit.txt."""
    files, labels = cifar10_files("train")
    lines = [f"{f.parent.name}/{f.name} {n}\n" for f, n in zip(files, labels, strict=True)]
    others = [line for i, line in enumerate(lines) if i % 10]
    for name, kept in (("held_out", lines[::10]), ("fit", others)):
        _write_once(CIFAR10 / f"{name}.txt", "".join(kept).encode())


def cifar10_images(corruption: str | None = None) -> np.ndarray:
    """Return the test images, (10000, 32, 32, 3) RGB uint8; corrupted ones are written once."""
    if corruption is None:
        files, _ = cifar10_files()
        return np.stack([cv2.imread(str(file))[..., ::-1] for file in files])
    path = CORRUPTED / f"{corruption}.npy"
    if not path.is_file():
        images = [corrupt(image, corruption, i) for i, image in enumerate(cifar10_images())]
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f"{corruption}.{os.getpid()}.npy")
        np.save(partial, np.stack(images))
        partial.replace(path)
    return np.load(path)


def classifier_tests(run: Path) -> dict[str, dict[str, float]]:
    """Return test -> top-1 of a run on CIFAR-10: clean, and for each corruption.

    A model with BatchNorm is tested with the statistics of batches of the test images, too, in an
    order shuffled with seed 0: as the tests NAME-batchN.
    """
    record = read_record(run)
    model = open_config(record["config"], record["overrides"]).build_model().eval()
    checkpoints.load_weights(model, last_checkpoint(run))
    models = {"": model}
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        models |= {f"-batch{size}": with_batch_statistics(model, size) for size in BATCHES}
    labels = torch.tensor(cifar10_files()[1])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    found = {}
    for name in (None, *CORRUPTIONS):
        images = cifar10_images(name)
        for end, one in models.items():
            right = sum(_right(one, images[part], labels[part]) for part in order.split(STEP))
            found[f"{name or OWN_TEST}{end}"] = {"accuracy/top1": 100 * right / len(labels)}
    trained = record["metrics"][""]["accuracy/top1"]
    if abs(found[OWN_TEST]["accuracy/top1"] - trained) > 0.1:
        raise ValueError(f"{run}: its training's test had {trained}, this test {found[OWN_TEST]}")
    return found


@torch.no_grad()
def _right(model: nn.Module, images: np.ndarray, labels: torch.Tensor) -> int:
    step = StandardizeImage()
    inputs = torch.from_numpy(np.stack([step.transform({"img": one})["img"] for one in images]))
    inputs = inputs.permute(0, 3, 1, 2)  # in memory as channels_last
    return int((model(inputs, mode="tensor").argmax(1) == labels).sum())


class BatchStatistics(nn.Module):
    """BatchNorm with the statistics of each ``size`` images in a row, in evaluation."""

    def __init__(self, norm: nn.BatchNorm2d, size: int) -> None:
        super().__init__()
        self.norm, self.size = norm, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batches = x.unflatten(0, (-1, self.size)).transpose(1, 2)  # (N / size, C, size, H, W)
        norm = self.norm
        y = functional.instance_norm(batches, weight=norm.weight, bias=norm.bias, eps=norm.eps)
        return y.transpose(1, 2).flatten(0, 1)


def with_batch_statistics(model: nn.Module, size: int) -> nn.Module:
    """Return a copy of a model whose BatchNorms use the statistics of each ``size`` images."""
    model = copy.deepcopy(model)
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, BatchStatistics(module, size))
    return model


def segmenter_tests(
    run: Path, configs: Mapping[str, str], changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Return test -> metrics of a run of mmseg on the test images of configs, changed and not.

    ``configs`` has the start of a test's name -> a config with these test images.
    """
    record = read_record(run)
    of_model = [word for word in record["overrides"] if word.startswith("model.")]
    found, model = {}, None
    for start, config in configs.items():
        opened = open_config(config, of_model)
        if model is None:
            model = opened.build_model().eval()
            checkpoints.load_weights(model, last_checkpoint(run))
        for name, change in ({OWN_TEST: None} | dict(changes)).items():
            test = start if name == OWN_TEST and start else f"{start}-{name}".strip("-")
            found[test] = _metrics(model, opened.config, change)
    return found


@torch.no_grad()
def _metrics(model: nn.Module, config: Any, change: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the metrics of a model on a config's test images, after a change of each image."""
    loader = copy.deepcopy(config.test_dataloader)
    if change is not None:
        for dataset in _datasets(loader["dataset"]):
            dataset["pipeline"] = _changed(dataset["pipeline"], change)
    batches = Runner.build_dataloader(loader, seed=0)
    evaluator = Evaluator(config.test_evaluator)
    evaluator.dataset_meta = batches.dataset.metainfo
    for batch in batches:
        evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
    return evaluator.evaluate(len(batches.dataset))


def _datasets(dataset: Any) -> Iterator[Any]:
    """Yield the datasets that read images."""
    if "datasets" in dataset:
        for one in dataset["datasets"]:
            yield from _datasets(one)
    else:
        yield dataset


def _changed(pipeline: Sequence[Any], change: Mapping[str, Any]) -> list[Any]:
    """Return a pipeline that changes the image after it is loaded."""
    (loads,) = (i for i, step in enumerate(pipeline) if step["type"] == "LoadImageFromFile")
    step = dict(type="TorchvisionTransform", **change)
    return [*pipeline[: loads + 1], step, *pipeline[loads + 1 :]]


def _write_once(path: Path, data: bytes) -> None:
    if not path.is_file():
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(path)
