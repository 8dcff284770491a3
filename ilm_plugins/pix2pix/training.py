"""Training of pix2pix in MMEngine: data set, optimizers, schedule, metrics, sample images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import barrier
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict, _ParamScheduler, build_optim_wrapper
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODEL_WRAPPERS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    PARAM_SCHEDULERS,
)
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from ..errors import UserError
from ..frameworks.openmmlab.norms import register
from . import pairs
from .metrics import NAMES, NO_WEIGHTS, compare, mean_image, measures, read


class PairedImages(Dataset):
    """Pairs of images, side by side or in two folders; see :mod:`ilm_plugins.pix2pix.pairs`.

    A sample has ``input`` and ``target``, (3, size, size) RGB uint8 each, and ``name``. With
    ``load_size``, both are resized to it, then cropped and flipped alike, at random:
    ``ExactSampler`` seeds each sample; other samplers use torch's global generator.

    Args:
        data_root: the folder of the data set.
        data_prefix: folders in it, ``pair_path`` alone or ``input_path`` and ``target_path``.
        direction: for pairs side by side, "right-to-left" or "left-to-right".
        images: (first, end) of the pairs to use, in the order of names, as in a slice; None for
            either end.
        size: side in pixels of the square images, to which all are resized.
        load_size: side to which images are enlarged before a random crop, at least ``size``; None
            for no augmentation.
        flip: probability of a horizontal flip in the augmentation.
        verify: whether to decode all files now, to find invalid ones; otherwise an unreadable file
            raises OSError when its sample is read.

    Raises:
        UserError: a folder is missing or has no images; files, of which up to 20 are named, have no
            counterpart or, with ``verify``, are unreadable, of odd width or of another size than
            their counterpart; or direction, data_prefix, images or load_size is invalid.
    """

    #: Tells the training command to verify the data set once, before it starts processes.
    verify_before_start = True

    def __init__(
        self,
        data_root: str = "",
        data_prefix: dict | None = None,
        direction: str = pairs.DIRECTIONS[0],
        images: Sequence[int | None] = (None, None),
        size: int = 256,
        load_size: int | None = None,
        flip: float = 0.5,
        verify: bool = True,
    ) -> None:
        if direction not in pairs.DIRECTIONS:
            choices = ", ".join(pairs.DIRECTIONS)
            raise UserError(f"direction is {direction!r}; choose one of {choices}")
        if load_size is not None and load_size < size:
            raise UserError(f"load_size={load_size} is below size={size}; enlarge it")
        root, folders = Path(data_root).expanduser(), dict(data_prefix or {"pair_path": ""})
        if folders.keys() == {"pair_path"}:
            found = pairs.side_by_side(root / folders["pair_path"])
        elif folders.keys() == {"input_path", "target_path"}:
            found = pairs.two_folders(root / folders["input_path"], root / folders["target_path"])
        else:
            raise UserError(
                f"data_prefix has {', '.join(folders) or 'nothing'}; give pair_path alone, or "
                "input_path and target_path"
            )
        self.pairs = found[slice(*images)]
        if not self.pairs:
            raise UserError(f"images={tuple(images)} leaves none of the {len(found)} pairs")
        if verify:
            pairs.check_pairs(self.pairs)
        self.direction, self.size = direction, size
        self.load_size, self.flip = load_size, flip
        self.metainfo = {"name": "PairedImages"}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int, int]) -> dict:
        """Read a sample: a dict with ``input``, ``target`` and ``name``; see the class.

        Args:
            key: index of the pair; or (index, seed, epoch) of ``ExactSampler``, which determines
                the augmentation. With an index alone, torch's global generator determines it.

        Raises:
            OSError: a file is missing or not an image.
        """
        index, *drawn = key if isinstance(key, tuple) else (key,)
        pair = self.pairs[index]
        both = pairs.read_pair(pair, self.direction)
        if self.load_size is None:
            both = tuple(pairs.resize(image, self.size) for image in both)
        else:
            entropy = [index, *drawn] if drawn else torch.randint(2**62, ()).item()
            rng = np.random.default_rng(entropy)
            both = pairs.jitter(both, self.size, self.load_size, self.flip, rng)
        given, target = map(pairs.to_tensor, both)
        return {"input": given, "target": target, "name": pair.name}

    @classmethod
    def score_mean_image(cls, cfg: Config, work_dir: Path) -> dict[str, float | int]:
        """Score the mean image of the training targets against the targets of a test.

        This is the result of the best constant output, a baseline for a trained model. All training
        images are decoded for it, without augmentation.

        Args:
            cfg: config of the training; ``test_evaluator.lpips_weights`` is AlexNet's checkpoint.
            work_dir: its output folder, where a test has written ``test/target``.

        Returns:
            Metric, see :func:`measures`, -> mean over the test images, and their number as
            "images"; LPIPS only if its weights are given.

        Raises:
            UserError: there are no images, the weights of LPIPS are missing or invalid, an image is
                too small for SSIM, or torchmetrics is not installed.
            OSError: an image is unreadable.
        """
        options = {k: v for k, v in cfg.train_dataloader.dataset.items() if k != "type"}
        trained = cls(**{**options, "load_size": None, "verify": False})
        mean = mean_image(sample["target"] for sample in trained)
        weights = (cfg.get("test_evaluator") or {}).get("lpips_weights")
        targets = map(read, pairs.image_files(work_dir / "test" / "target"))
        chosen = measures(lpips_weights=weights)
        return compare(((mean, target) for target in targets), chosen)


class ParallelNetworks(nn.Module):
    """Wraps each network of a model in DistributedDataParallel, for training in several processes.

    A network is a direct child with parameters to train; other children stay as they are. torch's
    process group must be initialized.

    Unlike MMEngine's MMSeparateDistributedDataParallel it leaves the model unchanged, so that
    checkpoints have the same keys as those of a single process. The model's ``train_step`` receives
    the wrapped networks, by their names, as ``parallel``.

    Args:
        module: the model.
        device_ids: ignored; each process has one device, the model's.
    """

    def __init__(self, module: nn.Module, device_ids: list[int] | None = None) -> None:
        super().__init__()
        self.module = module
        # A plain dict keeps them out of this wrapper's modules, and so of its state dict.
        self.parallel = {
            name: DistributedDataParallel(network, broadcast_buffers=False)
            for name, network in module.named_children()
            if any(p.requires_grad for p in network.parameters())
        }

    def train_step(self, data: dict, optim_wrapper: OptimWrapperDict) -> dict[str, Tensor]:
        """Train the model by one step; return its losses by name."""
        return self.module.train_step(data, optim_wrapper, self.parallel)

    def val_step(self, data: dict) -> list:
        """Return the model's predictions for a batch."""
        return self.module.val_step(data)

    def test_step(self, data: dict) -> list:
        """Return the model's predictions for a batch."""
        return self.module.test_step(data)


class OptimizerEach:
    """Builds one optimizer for each network of a model.

    Args:
        optim_wrapper_cfg: name of the network -> config of its optimizer wrapper.
        paramwise_cfg: MMEngine's options for single parameters, for networks whose config has none.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.cfg, self.paramwise_cfg = optim_wrapper_cfg, paramwise_cfg

    def __call__(self, model: nn.Module) -> OptimWrapperDict:
        """Build the optimizers, by network name; a model wrapper with ``module`` is unwrapped."""
        model = getattr(model, "module", model)
        return OptimWrapperDict(
            **{
                name: build_optim_wrapper(
                    getattr(model, name), {"paramwise_cfg": self.paramwise_cfg, **cfg}
                )
                for name, cfg in self.cfg.items()
            }
        )


class HalfLinearLR(_ParamScheduler):
    """A learning rate that is constant for the first half and decays linearly to 0 in the second.

    Of T steps, step t, counted from 0, has the initial rate times
    ``min(1, (T - t) / (T - T // 2))``.

    Args:
        optimizer: the optimizer whose learning rate this sets.
        end: the number of steps T; MMEngine sets the number of epochs.
        options: further arguments of MMEngine's schedulers.
    """

    def __init__(self, optimizer, *, end: int, **options) -> None:
        self.total = end
        super().__init__(optimizer, "lr", end=end, **options)

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue at the step of a checkpoint, but keep this schedule's T, which may differ.

        The optimizer's learning rates are set at once to those of that step.

        Args:
            state_dict: from this class's ``state_dict``.
        """
        end, total = self.end, self.total
        super().load_state_dict(state_dict)
        self.end, self.total = end, total
        # A schedule increases last_step up to its end, and no further.
        self.last_step = min(self._global_step - self.begin, self.total - 1)
        for group, value in zip(self.optimizer.param_groups, self._get_value(), strict=True):
            group[self.param_name] = value

    def _get_value(self) -> list[float]:
        share = min(1, (self.total - self.last_step) / (self.total - self.total // 2))
        return [base * share for base in self.base_values]


class ImageTransfer(BaseMetric):
    """Computes RMSE, SSIM, LPIPS and L1 of outputs; see :mod:`ilm_plugins.pix2pix.metrics`.

    Args:
        metrics: names of the metrics, of "rmse", "ssim", "lpips" and "l1".
        lpips_weights: local checkpoint of AlexNet; without it LPIPS is skipped, with a message in
            the log.
        options: further arguments of MMEngine's BaseMetric.

    Raises:
        UserError: a metric is unknown, the checkpoint is missing or invalid, or torchmetrics is not
            installed; when a sample is processed, if it has a side below SSIM's 11 pixels.
    """

    def __init__(
        self,
        metrics: Sequence[str] = NAMES,
        lpips_weights: str | None = None,
        **options,
    ) -> None:
        super().__init__(**options)
        self.measures = measures(metrics, lpips_weights)
        if set(metrics) - set(self.measures):
            print_log(f"lpips is {NO_WEIGHTS}: lpips_weights=FILE", "current")

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Compute the metrics of each sample's output and target, (3, H, W) uint8."""
        for sample in data_samples:
            pair = sample["output"], sample["target"]
            self.results.append({k: measure(*pair) for k, measure in self.measures.items()})

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Return name -> mean over all samples."""
        return {name: float(np.mean([r[name] for r in results])) for name in self.measures}


class TranslatedImages(Hook):
    """Writes a grid of samples at each validation, and every image at a test.

    The grid has a row of input, output and target for each sample, and goes to
    ``work_dir/samples/epoch_NUMBER.png`` and to the visualizer's backends, such as TensorBoard. A
    test writes ``work_dir/test/{input,output,target}/NAME.png`` in place of an earlier test's.

    Args:
        number: rows of the grid.
    """

    def __init__(self, number: int = 8) -> None:
        self.number = number
        self.rows: list[dict] = []

    def before_val_epoch(self, runner) -> None:
        """Forget the samples of the last validation."""
        self.rows = []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Keep the first ``number`` predictions of the validation."""
        self.rows += (outputs or [])[: self.number - len(self.rows)]

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Write the grid of samples; rank 0 only."""
        if runner.rank or not self.rows:
            return
        image = grid(self.rows)
        write(image, Path(runner.work_dir) / "samples" / f"epoch_{runner.epoch:04d}.png")
        runner.visualizer.add_image("samples", np.array(image), runner.epoch)

    def before_test_epoch(self, runner) -> None:
        """Remove the images of an earlier test, before any rank writes its own."""
        for kind in ("input", "output", "target") if not runner.rank else ():
            for path in (Path(runner.work_dir) / "test" / kind).glob("*.png"):
                path.unlink()
        barrier()

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Write the images of a batch of predictions."""
        for sample in outputs or []:
            for kind in ("input", "output", "target"):
                if kind in sample:
                    path = Path(runner.work_dir) / "test" / kind / f"{sample['name']}.png"
                    write(to_image(sample[kind]), path)


def grid(samples: Sequence[dict]) -> Image.Image:
    """Compose a picture with a row for each sample: input, output and, if given, target.

    Args:
        samples: at least one; dicts of (3, H, W) uint8, all of one size.
    """
    kinds = [kind for kind in ("input", "output", "target") if kind in samples[0]]
    return to_image(torch.cat([torch.cat([s[k] for k in kinds], 2) for s in samples], 1))


def to_image(pixels: Tensor) -> Image.Image:
    """Convert RGB pixels, (3, H, W) uint8 on the CPU, to an image."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def write(image: Image.Image, path: Path) -> None:
    """Save an image, and create its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


register(DATASETS, classes={"PairedImages": PairedImages})
register(HOOKS, classes={"TranslatedImages": TranslatedImages})
register(METRICS, classes={"ImageTransfer": ImageTransfer})
register(MODEL_WRAPPERS, classes={"ParallelNetworks": ParallelNetworks})
register(OPTIM_WRAPPER_CONSTRUCTORS, classes={"OptimizerEach": OptimizerEach})
register(PARAM_SCHEDULERS, classes={"HalfLinearLR": HalfLinearLR})
