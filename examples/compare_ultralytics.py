"""Compare norms in YOLO of Ultralytics, whose BatchNorms are converted:

    python -m ilm_plugins compare BN EN --seeds 0 1 2 3 4 \
        --metric "metrics/mAP50-95(B):run/results.csv" \
        --command "python examples/compare_ultralytics.py {norm} {seed} {output} \
        model=yolov8n.yaml data=coco8.yaml epochs=100"

What stands behind the folder are options of Ultralytics.
"""

import sys

import yaml
from ultralytics.models.yolo.detect import DetectionTrainer

from ilm_plugins.surgery import convert

norm, seed, output, *words = sys.argv[1:]


class Trainer(DetectionTrainer):
    def get_model(self, *args, **options):
        model = super().get_model(*args, **options)
        return model if norm == "BN" else convert(model, norm)[0]

    def final_eval(self):
        """Would fuse BatchNorms into convolutions; results.csv has the last epoch, too."""


options = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in words)}
place = {"project": output, "name": "run", "exist_ok": True}
Trainer(overrides={**options, **place, "seed": int(seed)}).train()
