"""Test a BN model with statistics of the test images.

Run it as: python tools/reestimate_statistics.py RUN_DIR CONFIG

RUN_DIR is the folder of a training of mmseg with BatchNorm, such as OUTPUT/BN/seed5 of a
comparison. CONFIG is a config whose test images give the statistics and the metrics. The running
statistics of each BatchNorm become the average over batches of the test images, without labels, in
an order shuffled with seed 0. The model and ``record.json`` go to RUN_DIR/NAME-reestimated, where
NAME is CONFIG's file name without .py.
"""

import subprocess
import sys
from pathlib import Path

from mmengine.runner import Runner
from torch.optim.swa_utils import update_bn

from ilm_plugins import checkpoints
from ilm_plugins.frameworks import open_config, read_record
from ilm_plugins.frameworks.checkpoints import last_checkpoint
from ilm_plugins.parent_process import command_line


def main() -> None:
    run, config = Path(sys.argv[1]), sys.argv[2]
    folder = run / f"{Path(config).stem}-reestimated"
    of_model = [o for o in read_record(run)["overrides"] if o.startswith("model.")]
    opened = open_config(config, of_model)
    model = opened.build_model()
    checkpoints.load_weights(model, last_checkpoint(run))
    loader = {
        **opened.config.test_dataloader,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
    }
    batches = Runner.build_dataloader(loader, seed=0)
    update_bn((model.data_preprocessor(batch)["inputs"] for batch in batches), model)
    folder.mkdir(exist_ok=True)
    checkpoints.write({"state_dict": model.state_dict()}, folder / "reestimated.pth")
    files = [f"load_from={folder / 'reestimated.pth'}", f"work_dir={folder}"]
    options = ["--config-file", config, "--num-gpus", "0", "--eval-only"]
    raise SystemExit(subprocess.call(command_line(["train", *options, *of_model, *files])))


if __name__ == "__main__":
    main()
