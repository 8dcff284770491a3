"""detectron2's yaml configs and LazyConfigs: their models, data and training, and variants."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2 import data, engine, modeling
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from torch import nn

from ...errors import UserError
from ...shapes.detectron2 import register_datasets as register_shapes
from ..config import Inference, OpenConfig, differences, is_below
from ..length import Length
from ..run.record import RunRecord
from . import evaluation, training
from .config_files import TRAIN, load_config
from .datasets import POLYGONS, check_dataset, register_coco

#: META_ARCHITECTURE of a yaml -> the key of its number of classes.
CLASSES = {
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
}
#: META_ARCHITECTUREs without the semantic head, which has a NORM by default.
WITHOUT_SEM_SEG_HEAD = "GeneralizedRCNN", "ProposalNetwork", "RetinaNet"
#: Section of a yaml that has a NORM -> the part of the model that it describes, as a key.
PARTS = {
    "MODEL.RESNETS": "model.backbone.bottom_up",
    "MODEL.FPN": "model.backbone",
    "MODEL.ROI_BOX_HEAD": "model.roi_heads.box_head",
    "MODEL.ROI_MASK_HEAD": "model.roi_heads.mask_head",
    "MODEL.RETINANET": "model.head",
    "MODEL.SEM_SEG_HEAD": "model.sem_seg_head",
}


class Detectron2Config(OpenConfig):
    """What both kinds of config have: datasets by name, and a number of classes.

    A subclass has ``train(record)``; ``optimizer(model)``; ``tests()``, the name, the loader and
    the evaluator of each test set; ``class_keys()``, the keys of the model's number of classes;
    ``_train_loader(processes)``; and ``_preprocessing()``, the resizing of the evaluation and the
    order of colours.
    """

    framework = "detectron2"
    packages = ("detectron2",)
    checkpoint_entry = "model"
    #: They are nowhere to be read.
    norm_keys = "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"
    #: Keys of the names of the training sets and of the test sets.
    training_sets: ClassVar[str]
    test_sets: ClassVar[str]
    #: The key that turns masks on, the value that turns them off, and the key for keypoints.
    masks: ClassVar[tuple[str, str]]
    keypoints: ClassVar[str]
    #: The keys by which the training reads masks, and of their form.
    mask_format: ClassVar[tuple[str, str]]
    #: Keys of the number of images of a step, and of the number of steps.
    batch: ClassVar[str]
    steps: ClassVar[str]

    @classmethod
    def read(
        cls, path: str, overrides: Sequence[str], device: str, amp: bool
    ) -> "Detectron2Config":
        return cls(path, load_config(path, overrides, device, amp), device)

    @classmethod
    def register(cls, datasets: Iterable[tuple[str, str, str]]) -> None:
        register_shapes()
        for dataset in datasets:
            register_coco(*dataset)

    def run(self, record: RunRecord) -> None:
        training.run(self, record)

    def training_step(self, processes: int = 1) -> Callable[[], None]:
        model = self.build_model().train()
        batch = next(self.training_batches(processes))
        trainer = training.simple_trainer(self, model, model, repeat(batch))
        storage = EventStorage()

        def step() -> None:
            with storage:
                trainer.run_step()
                storage.step()

        return step

    def outputs(self, model: nn.Module, batch: list[dict]) -> Any:
        return model(batch)

    def classes_of_test(self) -> tuple[str, ...] | None:
        for name in self.datasets(self.test_sets):
            metadata = data.MetadataCatalog.get(name)
            if not {"thing_classes", "stuff_classes"} & metadata.as_dict().keys():
                try:
                    data.DatasetCatalog.get(name)  # of COCO's format, it reads them from the file
                except Exception:  # such as a missing file, which the test itself names
                    return None
            return (*metadata.get("thing_classes", ()), *metadata.get("stuff_classes", ())) or None
        return None

    def _is_unknown(self, key: str, norm: str, error: KeyError) -> bool:
        return norm in error.args

    def inference(self) -> Inference:
        augmentations, order = self._preprocessing()
        model, augment = self.build_model(), T.AugmentationList(augmentations)

        def prepare(image: np.ndarray) -> dict:
            """A model's input of an (H, W, 3) RGB uint8 image; outputs have the size H, W again."""
            given = T.AugInput(np.ascontiguousarray(image[..., ::-1] if order == "BGR" else image))
            augment(given)
            pixels = torch.from_numpy(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
            return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}

        @torch.no_grad()
        def forward(images: Sequence[np.ndarray]) -> Any:
            return model([prepare(image) for image in images])

        preprocessing = ", ".join(map(str, augmentations)) or "not resized"
        return Inference(Path(self.path).stem, model, forward, 1, preprocessing)

    def training_batches(self, processes: int = 1) -> Iterator[list[dict]]:
        return iter(self._train_loader(processes))

    def length(self, processes: int = 1) -> Length:
        settings, images = self.settings, None
        sets = map(data.MetadataCatalog.get, self.datasets(self.training_sets))
        with suppress(Exception):  # such as of files that are missing
            # Without its json, a dataset may be generated.
            if all(os.path.isfile(metadata.get("json_file", __file__)) for metadata in sets):
                images = training.count_images(self._train_loader(processes))
        return Length("iterations", settings[self.steps], settings.get(self.batch), images)

    def has_test(self) -> bool:
        of_test = self.test_set[-1:]
        return any(value for key, value in self.settings.items() if is_below(key, of_test))

    def datasets(self, key: str) -> list[str]:
        """Return the names of the datasets of a setting."""
        names = self.settings.get(key) or ()
        return [names] if isinstance(names, str) else [*names]

    def check_test(self) -> None:
        self._check_number(self._classes(self.test_sets, {"area": "the test needs a number"}))

    def check_training(self, given: Collection[str]) -> None:
        classes = {**self._classes(self.training_sets), **self._classes(self.test_sets)}
        is_unused = given and classes.keys().isdisjoint(given)
        if is_unused and (names := self.settings.get(self.training_sets)):
            raise UserError(
                f"{self.training_sets} is {names!r}, but --dataset gives {', '.join(given)}; name "
                "the same datasets in both"
            )
        for (name, ours), (other, theirs) in pairwise(classes.items()):
            for i, our, their in differences(dict(enumerate(ours)), dict(enumerate(theirs))):
                raise UserError(
                    f"class {i} of dataset {other!r} is {their!r}, of {name!r} {our!r}; give both "
                    "jsons the same categories"
                )
        self._check_number(classes)

    def _classes(self, setting: str, needed: Mapping[str, str] | None = None) -> dict[str, list]:
        """Return name -> classes of the datasets of a setting that come from ``--dataset``.

        UserError for datasets that are not registered or invalid, or lack what the model needs.
        """
        needed = {
            "bbox": "a detector needs four numbers, the size not negative",
            "iscrowd": "detectron2 needs 0 or 1",
            **(needed or {}),
        }
        masks, off = self.masks
        if self.settings.get(masks):
            needed["segmentation"] = f"{masks} needs polygons or a mask (without masks, give {off})"
            reads, form = self.mask_format
            is_read = setting == self.training_sets and self.settings.get(reads)
            if is_read and self.settings.get(form, "polygon") == "polygon":
                bitmask = " ".join(self.override(form, "bitmask"))
                needed[POLYGONS] = f"{form} needs polygons (for other masks, give {bitmask})"
        checked = {name: check_dataset(name, setting, needed) for name in self.datasets(setting)}
        classes = {name: names for name, names in checked.items() if names is not None}
        if classes and self.settings.get(self.keypoints):
            raise UserError(
                f"{self.keypoints}: --dataset {min(classes)} registers no keypoints; register it "
                "by --import FILE, with keypoint_names and keypoint_flip_map"
            )
        return classes

    def _check_number(self, classes: Mapping[str, list]) -> None:
        """Raise UserError unless the model has as many classes as each dataset."""
        for name, names in classes.items():
            for key in self.class_keys():
                if (number := self.settings[key]) != len(names):
                    raise UserError(
                        f"{key} is {number}, but dataset {name!r} has {len(names)} classes; give "
                        f"{' '.join(self.override(key, len(names)))}"
                    )


class OpenYaml(Detectron2Config):
    """A yaml config, whose overrides are two arguments, KEY VALUE."""

    keys: ClassVar = {"seed": "SEED", "folder": "OUTPUT_DIR", "weights": "MODEL.WEIGHTS"}
    model, ignored_settings = "MODEL", ("MODEL.WEIGHTS", "MODEL.DEVICE")
    norm_names = ("NORM",)
    example = "MODEL.FPN.NORM"
    freezing: ClassVar = ("FREEZE_AT", 0)
    training_sets, test_sets = "DATASETS.TRAIN", "DATASETS.TEST"
    masks, keypoints = ("MODEL.MASK_ON", "MODEL.MASK_ON False"), "MODEL.KEYPOINT_ON"
    mask_format = "MODEL.MASK_ON", "INPUT.MASK_FORMAT"
    test_set: ClassVar = (test_sets,)
    batch, steps, amp = "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.AMP.ENABLED"
    arguments_per_override = 2

    def train(self, record: RunRecord) -> None:
        trainer = training.Trainer(self, record)
        trainer.resume_or_load(record.options.resume)
        trainer.train()

    def _build(self) -> nn.Module:
        return modeling.build_model(self.config)

    def _preprocessing(self) -> tuple[list[T.Augmentation], str]:
        given = self.config.INPUT
        side, longest = given.MIN_SIZE_TEST, given.MAX_SIZE_TEST
        return [T.ResizeShortestEdge([side, side], longest)] if side else [], given.FORMAT

    def _train_loader(self, processes: int) -> Iterable[list[dict]]:
        cfg = self.config.clone()
        cfg.defrost()
        cfg.SOLVER.IMS_PER_BATCH = max(1, cfg.SOLVER.IMS_PER_BATCH // processes)
        return data.build_detection_train_loader(cfg)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return engine.DefaultTrainer.build_optimizer(self.config, model)

    def tests(self) -> Iterator[tuple[str, Any, Any]]:
        for name in self.config.DATASETS.TEST:
            loader = data.build_detection_test_loader(self.config, name)
            yield name, loader, evaluation.build_evaluator(name, self.config)

    def unit(self, metric: str) -> str:
        return "percent"  # of all evaluators of detectron2

    def check_test(self) -> None:
        if self.config.TEST.AUG.ENABLED:
            raise UserError("TEST.AUG.ENABLED: train has no test-time augmentation; set it False")
        super().check_test()
        for name in self.config.DATASETS.TEST:
            evaluation.check_evaluator(name)

    def class_keys(self) -> list[str]:
        model = self.config.MODEL.META_ARCHITECTURE
        return [CLASSES[model]] if model in CLASSES else []

    def override(self, key: str, value: Any) -> list[str]:
        return [key, str(value)]

    def why_kept(self, key: str, norm: str) -> str:
        model = self.config.MODEL.META_ARCHITECTURE
        if key == "MODEL.SEM_SEG_HEAD.NORM" and model in WITHOUT_SEM_SEG_HEAD:
            return f"{model} has no such head"
        return super().why_kept(key, norm)

    def parts_above(self, key: str) -> list[str]:
        section = key.rpartition(".")[0]
        frozen = ["MODEL.BACKBONE"] if section == "MODEL.RESNETS" else []
        return [*frozen, *super().parts_above(f"{PARTS.get(section, 'model')}.norm")]


class OpenLazyConfig(Detectron2Config):
    """A LazyConfig."""

    keys: ClassVar = {
        "seed": "train.seed",
        "folder": "train.output_dir",
        "weights": "train.init_checkpoint",
    }
    norm_names = ("norm", "conv_norm")
    example = "model.backbone.norm"
    training_sets, test_sets = "dataloader.train.dataset.names", "dataloader.test.dataset.names"
    masks = ("model.roi_heads.mask_in_features", "model.roi_heads.mask_in_features=null")
    keypoints = "model.roi_heads.keypoint_in_features"
    mask_format: ClassVar = (
        "dataloader.train.mapper.use_instance_mask",
        "dataloader.train.mapper.instance_mask_format",
    )
    test_set: ClassVar = ("dataloader.test", "dataloader.evaluator")
    batch, steps = "dataloader.train.total_batch_size", "train.max_iter"
    amp = "train.amp.enabled"

    def train(self, record: RunRecord) -> None:
        training.train_lazy(self, record)

    def _build(self) -> nn.Module:
        return instantiate(self.config.model)

    def _preprocessing(self) -> tuple[list[T.Augmentation], str]:
        mapper = OmegaConf.select(self.config, "dataloader.test.mapper") or {}
        augmentations = [instantiate(node) for node in mapper.get("augmentations", ())]
        return augmentations, mapper.get("image_format", "BGR")

    def _train_loader(self, processes: int) -> Iterable[list[dict]]:
        loader = self.config.dataloader.train
        size = {"total_batch_size": max(1, loader.total_batch_size // processes)}
        return instantiate({**loader, **size})

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        cfg = self.config.copy()
        cfg.optimizer.params.model = model
        return instantiate(cfg.optimizer)

    def tests(self) -> Iterator[tuple[str, Any, Any]]:
        if self.has_test():
            parts = self.config.dataloader
            yield "test", instantiate(parts.test), instantiate(parts.evaluator)

    def unit(self, metric: str) -> str | None:
        target = OmegaConf.select(self.config, "dataloader.evaluator._target_", default="")
        module = target if isinstance(target, str) else getattr(target, "__module__", "")
        return "percent" if module.partition(".")[0] == "detectron2" else None

    def check_test(self) -> None:
        train = self.contents().get("train", {})
        for key in TRAIN[:-2]:
            if key not in train:
                raise UserError(
                    f"train.{key} is missing; add it, or begin with the train of detectron2's "
                    "model_zoo.get_config('common/train.py')"
                )
        super().check_test()

    def class_keys(self) -> list[str]:
        keys = "model.roi_heads.num_classes", "model.num_classes"
        return [key for key in keys if key in self.settings]

    def contents(self) -> Mapping[str, Any]:
        return OmegaConf.to_container(self.config, resolve=True)

    def override(self, key: str, value: Any) -> list[str]:
        # Quoted for hydra's grammar, in which a bracket calls a function.
        text = str(value).replace("\\", "\\\\").replace("'", "\\'")
        return [f"{key}={value}" if isinstance(value, int) else f"{key}='{text}'"]


def kind_of(path: str) -> type[Detectron2Config]:
    return OpenLazyConfig if path.endswith(".py") else OpenYaml
