"""Train pix2pix with several configs at once, a step of all of them as one CUDA graph.

Run it as: python -m reproduction.train_pix2pix_as_graph CONFIG... --data FOLDER --output FOLDER

Each config trains by its own ``train_step``, on the same images in the same order; pairs are read
once, and cropped on the device. Configs are branches of the graph, so that their small kernels
overlap. The learning rate is constant for half of the epochs, then linear to 0, as in the configs.
OUTPUT/NAME/result.json has a config's losses and metrics, OUTPUT/NAME/test the first test images:
input, output and target. On the CPU the steps run without a graph.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor

from ilm_plugins.frameworks import commit, versions
from ilm_plugins.pix2pix import training
from ilm_plugins.pix2pix.pairs import PairedImages

#: Steps before the graph is captured, which train, too.
WARM_UP = 3
#: Translated images that are written.
WRITTEN = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--data", required=True, help="folder of pairs side by side")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, help="default: the first config's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    configs = {Path(name).stem: Config.fromfile(name) for name in args.configs}
    first, device = next(iter(configs.values())), torch.device(args.device)
    epochs = args.epochs or first.train_cfg.max_epochs
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.backends.cudnn.benchmark = True
        # All is captured on one stream, which must not be the default one.
        torch.cuda.set_stream(torch.cuda.Stream())
    pairs = Pairs(first.train_dataloader.dataset, args.data, epochs, args.seed, device)
    branches = {name: Branch(config, args.seed, device) for name, config in configs.items()}

    def step() -> None:
        pair = pairs.next()
        for branch in branches.values():
            branch.step(pair)
        for branch in branches.values():
            branch.join()

    for _ in range(WARM_UP):
        step()
    run = step
    if is_cuda:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            step()
        run = graph.replay

    begin, done = time.monotonic(), WARM_UP
    for epoch in range(epochs):
        for branch in branches.values():
            branch.set_rate(min(1, (epochs - epoch) / (epochs - epochs // 2)))
        while done < (epoch + 1) * len(pairs.images):
            run()
            done += 1
        for branch in branches.values():
            branch.note(epoch + 1, len(pairs.images))  # it waits for the device
        print(f"epoch {epoch + 1} of {epochs}, {time.monotonic() - begin:.0f} s", flush=True)
    about = {
        "seed": args.seed,
        "epochs": epochs,
        "images": len(pairs.images),
        "configs at once": [*configs],
        "seconds of all": round(time.monotonic() - begin, 1),
        "device": torch.cuda.get_device_name(device) if is_cuda else "CPU",
        "commit": commit(),
        "versions": versions(),
    }
    tested = PairedImages(**without_jitter(first.test_dataloader.dataset, args.data))
    for name, branch in branches.items():
        folder = args.output / name
        result = about | branch.test(tested, folder / "test") | {"curve": branch.curve}
        (folder / "result.json").write_text(json.dumps(result, indent=1))
        print(name, result["metrics"])


class Pairs:
    """All pairs of a training set on a device, and which crop of which pair each step has."""

    def __init__(
        self, options: dict, data: str, epochs: int, seed: int, device: torch.device
    ) -> None:
        resized = PairedImages(**without_jitter(options, data, size=options["load_size"]))
        images = [torch.stack([one["input"], one["target"]]) for one in resized]
        self.images = torch.stack(images).to(device)
        rng, number = np.random.default_rng(seed), len(images)
        order = np.concatenate([rng.permutation(number) for _ in range(epochs)])
        most = options["load_size"] - options["size"]
        corners = rng.integers(0, most, (len(order), 2), endpoint=True)
        flipped = rng.random(len(order)) < options["flip"]
        rows = np.column_stack([order, corners, flipped])
        self.rows = torch.from_numpy(rows.astype(np.int64)).to(device)
        self.number = torch.zeros(1, dtype=torch.int64, device=device)
        self.along = torch.arange(options["size"], device=device)

    def next(self) -> Tensor:
        """Return the next pair, input and target, (2, 3, size, size) uint8."""
        image, top, left, flipped = self.rows.index_select(0, self.number)[0].split(1)
        self.number += 1
        columns = torch.where(flipped > 0, len(self.along) - 1 - self.along, self.along)
        pair = self.images.index_select(0, image)[0]
        return pair.index_select(2, top + self.along).index_select(3, left + columns)


class Branch:
    """A model, its optimizers, its losses, and the stream on which it trains."""

    def __init__(self, config: Config, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.model = MODELS.build(config.model).to(device)
        self.device = device
        optimizers = {name: config.optim_wrapper[name] for name in ("generator", "discriminator")}
        self.optimizers = training.OptimizerEach(optimizers)(self.model)
        groups = [group for w in self.optimizers.values() for group in w.optimizer.param_groups]
        self.rates = [(group, group["lr"]) for group in groups]
        self.stream = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream()
            for group in groups:  # as graphs need it
                group |= {"capturable": True, "lr": torch.tensor(group["lr"], device=device)}
        self.sums: dict[str, Tensor] = {}
        self.curve: list[dict] = []

    def step(self, pair: Tensor) -> None:
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            batch = {"input": pair[:1], "target": pair[1:]}
            for name, loss in self.model.train_step(batch, self.optimizers).items():
                self.sums.setdefault(name, torch.zeros_like(loss)).add_(loss)

    def join(self) -> None:
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)

    def set_rate(self, factor: float) -> None:
        for group, rate in self.rates:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def note(self, epoch: int, steps: int) -> None:
        """Add the epoch's mean losses to the curve."""
        means = {name: round(value.item() / steps, 6) for name, value in self.sums.items()}
        self.curve.append({"epochs": epoch, **means})
        for value in self.sums.values():
            value.zero_()

    @torch.no_grad()
    def test(self, tested: PairedImages, folder: Path) -> dict:
        """Translate the test images; return the metrics, also of the mean training image."""
        self.model.eval()
        metric = training.ImageTransfer()
        metric.dataset_meta = tested.metainfo
        for i in range(len(tested)):
            batch = {key: [value] for key, value in tested[i].items()}
            (sample,) = self.model.test_step(batch)
            metric.process(batch, [sample])
            if i < WRITTEN:
                image = training.to_image(torch.cat([sample[kind] for kind in training.KINDS], 2))
                training.write(image, folder / f"{sample['name']}.png")
        return {"metrics": metric.compute_metrics(metric.results)}


def without_jitter(options: dict, data: str, **changed) -> dict:
    """Return PairedImages' options, with another folder, without crops and flips."""
    kept = {k: v for k, v in options.items() if k not in ("type", "load_size", "flip")}
    return {**kept, "data_root": data, **changed}


if __name__ == "__main__":
    main()
