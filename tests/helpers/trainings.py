"""Small runs of tools/train_net.py on the generated shapes, one of each kind."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from helpers.workers import start_by
from ilm_plugins import __main__ as commands

SHAPES = Path(__file__).parents[2] / "configs/detectron2/shapes/mask_rcnn_R_18_FPN_ilmgn.yaml"
#: detectron2: two images of 64 x 64 a batch, no loader processes, random weights.
SMALL = [
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "MODEL.WEIGHTS", ""),
]
SMALL += ["SOLVER.BASE_LR", "0.01", "SOLVER.WARMUP_ITERS", "0"]
SMALL += ["TEST.DETECTIONS_PER_IMAGE", "10", "MODEL.FPN.NORM", "SSN"]
NO_TEST = ["DATASETS.TEST", "()"]
#: A detectron2 LazyConfig.
LAZY = """
from detectron2.data import DatasetCatalog
from detectron2.model_zoo import get_config

_base = get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, train, dataloader = _base.model, _base.train, _base.dataloader
optimizer, lr_multiplier = _base.optimizer, _base.lr_multiplier
model.backbone.bottom_up.freeze_at = 0
model.backbone.bottom_up.stages.norm = model.backbone.bottom_up.stem.norm = "GN"
model.backbone.norm = "SSN"
model.backbone.bottom_up.stages.depth = 18
del model.backbone.bottom_up.stages["stride_in_1x1"]
model.proposal_generator.pre_nms_topk = model.proposal_generator.post_nms_topk = (100, 50)
model.roi_heads.batch_size_per_image = 16
model.roi_heads.num_classes = 4
model.roi_heads.box_head.conv_dims = [32, 32]
model.roi_heads.box_head.conv_norm = "ILMGN(key_group_size=8)"
model.roi_heads.mask_head.conv_dims = [32, 32]
model.roi_heads.box_predictor.test_topk_per_image = 10
optimizer.lr = 0.01
train.init_checkpoint = ""
train.max_iter = train.eval_period = 2
train.log_period = 1
DatasetCatalog.register("mine", lambda: DatasetCatalog.get("shapes_train"))
dataloader.train.dataset.names = "mine"
dataloader.test.dataset.names = "shapes_val"
dataloader.train.mapper.augmentations, dataloader.test.mapper.augmentations = [], []
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
"""

#: A config of a small segmenter.
MMENGINE_CONFIG = """
_base_ = "ilm_plugins::mmseg/_base_/fcn_r18-d8_shapes.py"
norm_cfg = dict(type="ILMGN", num_groups=4)
model = dict(
    data_preprocessor=dict(
        _delete_=True, type="SegDataPreProcessor", size=(64, 64), pad_val=0, seg_pad_val=255
    ),
    backbone=dict(base_channels=16, stem_channels=16, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=128, channels=32, norm_cfg=norm_cfg),
    auxiliary_head=None,
)
folders = dict(img_path="images/validation", seg_map_path="annotations/validation")
dataset = dict(data_root="DATASETS/shapes", data_prefix=folders)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = val_evaluator = val_cfg = param_scheduler = visualizer = None
optim_wrapper = dict(optimizer=dict(lr=0.01, weight_decay=0), paramwise_cfg=None)
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=4)
default_hooks = dict(
    _delete_=True, logger=dict(type="LoggerHook", interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2),
)
randomness = dict(seed=0)
resize = [dict(type="Resize", scale_factor=s, keep_ratio=True) for s in (0.5, 1.0)]
transforms = [resize, [dict(type="LoadAnnotations")], [dict(type="PackSegInputs")]]
tta_pipeline = [dict(type="LoadImageFromFile"), dict(type="TestTimeAug", transforms=transforms)]
"""


def write_mmengine_config(path: Path, datasets: Path) -> Path:
    path.write_text(MMENGINE_CONFIG.replace("DATASETS", str(datasets)))
    return path


def mmengine_command(config, *options, out, opts=()):
    first = ["train", "--config-file", str(config), "--num-gpus", "0", *options]
    # By default named by the second, and two runs of one name in a process share their records.
    name = f"experiment_name=run_{uuid4().hex}"
    return [*first, f"work_dir={out}", name, *opts]


def assert_gone(pids, seconds=30):
    until = time.monotonic() + seconds
    while running := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < until, f"processes {running} are left after {seconds} s"
        time.sleep(0.1)


class Launcher:
    """A process forked from this one, which runs commands of the package in further forks.

    The forks have all that is imported here. The process must be made before torch's first
    backward pass: torch refuses others in forks of a process whose autograd has started threads.
    """

    def __init__(self):
        self._requests, requests = multiprocessing.Pipe()
        if os.fork() == 0:
            self._requests.close()
            with suppress(EOFError):  # as soon as this process ends
                while True:
                    self._run(requests, *requests.recv())
            os._exit(0)
        requests.close()

    def _run(self, requests, words, log, folder):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.chdir(folder)
                sys.stdout = sys.stderr = log.open("a", buffering=1)
                for number in (1, 2):
                    os.dup2(sys.stdout.fileno(), number)
                with start_by("fork"):
                    status = commands.main(words)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        requests.send(child)
        requests.send(os.waitpid(child, 0)[1])

    def start(self, words, log):
        """Start a command, whose output is added to a file, in this folder; return its process."""
        self._requests.send((words, log, os.getcwd()))
        return self._requests.recv()

    def wait(self):
        """Return the status with which the command ended."""
        return self._requests.recv()

    def has_ended(self):
        return self._requests.poll()

    def kill(self, process):
        """Kill the first process of a training by SIGKILL, and see that its children end, too."""
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        os.kill(process, signal.SIGKILL)
        assert self.wait() == signal.SIGKILL
        assert_gone(children)


def train_until_killed(launcher, words, path):
    """Train until a file is there, then kill the training."""
    log, end = path.parent.with_suffix(".log"), time.monotonic() + 240
    process = launcher.start(words, log)
    while not path.exists():
        assert not launcher.has_ended(), log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.02)
    launcher.kill(process)


#: Command -> what it needs before it looks at its words.
NEEDS = {"make-shapes": "PIL", "translate": "mmengine"}
