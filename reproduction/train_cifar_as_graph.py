"""Train ResNet-50 on CIFAR-10 with several norms, each step as one CUDA graph in bfloat16.

Run it as: python -m reproduction.train_cifar_as_graph NORM... --data FOLDER --output FOLDER

A short version of Table 1 of the ILM Norm paper, not its recipe: see NOTE. Batch, learning rate,
its steps at the same fractions, momentum and weight decay are the paper's. FOLDER has train.npz and
test.npz: "jpeg", the bytes of all files end to end, "offsets", where each begins, and "labels". All
norms of a seed see the same images, crops and flips. OUTPUT/NORM-SEED.json has the errors in
percent. On the CPU the steps run without a graph.
"""

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet, resnet50

from ilm_plugins import NORMS
from ilm_plugins.frameworks import commit, versions

NOTE = "not the paper's recipe: ResNet-50, few epochs, bfloat16 autocast, JPEG images"
MAKES = {"LN": lambda c: nn.GroupNorm(1, c), "GN": lambda c: nn.GroupNorm(32, c), **NORMS}
BATCH, RATE, PADDING, SIZE = 64, 0.1, 4, 32
#: The fractions of the epochs after which the learning rate is divided by 10.
MILESTONES = (150 / 350, 250 / 350)
#: Steps before the graph is captured, which train, too; epochs from one test to the next.
WARM_UP, TEST_EVERY = 3, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("norms", nargs="+", choices=MAKES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--images", type=int, help="of both sets; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        # All is captured on one stream, which must not be the default one.
        torch.cuda.set_stream(torch.cuda.Stream())
    trained, tested = (
        [tensor.to(device) for tensor in read(args.data / f"{split}.npz", args.images)]
        for split in ("train", "test")
    )
    args.output.mkdir(parents=True, exist_ok=True)
    for norm in args.norms:
        batches = Batches(*trained, args.epochs, args.seed)
        result = {"note": NOTE, "norm": norm, "seed": args.seed, "images": len(trained[0])}
        result |= {"device": str(device), "commit": commit(), "versions": versions()}
        result |= train(norm, batches, tested, args.epochs, args.seed)
        (args.output / f"{norm}-{args.seed}.json").write_text(json.dumps(result, indent=1))


def read(path: Path, number: int | None) -> tuple[Tensor, Tensor]:
    """Return images, (N, 32, 32, 3) uint8, and labels, (N), at equal distances in the file."""
    found = np.load(path)
    jpeg, offsets, labels = (found[name] for name in ("jpeg", "offsets", "labels"))
    chosen = np.linspace(0, len(labels) - 1, number or len(labels)).astype(np.int64)
    files = [io.BytesIO(jpeg[offsets[i] : offsets[i + 1]]) for i in chosen]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(images), torch.from_numpy(labels[chosen].astype(np.int64))


class Batches:
    """The training set on a device, and which images, crops and flips each step has."""

    def __init__(self, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
        edges = (0, 0, PADDING, PADDING, PADDING, PADDING)
        self.images, self.labels = nn.functional.pad(images, edges), labels
        rng, self.steps = np.random.default_rng(seed), len(images) // BATCH
        used = self.steps * BATCH
        order = np.concatenate([rng.permutation(len(images))[:used] for _ in range(epochs)])
        corners = rng.integers(0, 2 * PADDING, (2, len(order)), endpoint=True)
        rows = np.stack([order, *corners, rng.integers(0, 2, len(order))], 1)
        self.rows = torch.from_numpy(rows).reshape(-1, BATCH, 4).to(images.device)
        self.number = torch.zeros(1, dtype=torch.int64, device=images.device)
        self.along = torch.arange(SIZE, device=images.device)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next images, (BATCH, 3, 32, 32) in channels last, and their labels."""
        image, top, left, flipped = self.rows.index_select(0, self.number)[0].split(1, dim=1)
        self.number += 1
        columns = left + torch.where(flipped > 0, SIZE - 1 - self.along, self.along)
        rows = top + self.along
        found = self.images[image[:, :, None], rows[:, :, None], columns[:, None]]
        return normalized(found), self.labels[image[:, 0]]


def normalized(images: Tensor) -> Tensor:
    """Return (N, 32, 32, 3) uint8 as (N, 3, 32, 32) in channels last, about standardized."""
    return ((images / 255 - 0.47) / 0.25).permute(0, 3, 1, 2)


def train(norm: str, batches: Batches, tested: list[Tensor], epochs: int, seed: int) -> dict:
    """Train and test; return the seconds of a step, and the error in % at tested epochs."""
    device = batches.images.device
    torch.manual_seed(seed)
    model = resnet50(num_classes=10, norm_layer=MAKES[norm])
    # CIFAR's stem: stride 1, and no max-pooling.
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.to(device, memory_format=torch.channels_last)
    options = {"momentum": 0.9, "weight_decay": 5e-4, "fused": device.type == "cuda"}
    optimizer = torch.optim.SGD(model.parameters(), RATE, **options)
    total = torch.zeros((), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        x, labels = batches.next()
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    drops = [round(epochs * fraction) for fraction in MILESTONES]
    curve, run, done, spent = [], step, 0, 0.0
    for epoch in range(epochs):
        begin = time.monotonic()
        optimizer.param_groups[0]["lr"] = RATE * 0.1 ** sum(epoch >= drop for drop in drops)
        if device.type == "cuda" and (epoch == 0 or epoch in drops):
            while done < WARM_UP:
                step()
                done += 1
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()  # it keeps the learning rate of its capture
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                step()
            run = graph.replay
        while done < (epoch + 1) * batches.steps:
            run()
            done += 1
        loss = total.item() / batches.steps  # waits for the device
        total.zero_()
        spent += time.monotonic() - begin
        if (epoch + 1) % TEST_EVERY == 0 or epoch + 1 == epochs:
            curve.append({"epochs": epoch + 1, "loss": loss, "error": error(model, *tested)})
            print(norm, curve[-1], f"{spent / done:.4f} s a step", flush=True)
    return {"epochs": epochs, "seconds of a step": spent / done, "curve": curve}


@torch.no_grad()
def error(model: ResNet, images: Tensor, labels: Tensor) -> float:
    """Return the share of wrong classes in percent."""
    model.eval()
    wrong = 0
    for x, target in zip(images.split(1000), labels.split(1000), strict=True):
        with torch.autocast(x.device.type, torch.bfloat16):
            wrong += (model(normalized(x)).argmax(1) != target).sum().item()
    model.train()
    return 100 * wrong / len(labels)


if __name__ == "__main__":
    main()
