"""Compare norms in train.py of torchvision's references: copy this file beside it, and give there

    python -m ilm_plugins compare BN EN --seeds 0 1 2 3 4 \
        --metric "Test: Acc@1:printed-by-script.txt" \
        --command "python compare_torchvision.py {norm} {seed} --model resnet50 \
        --data-path imagenet --output-dir {output}"

What stands behind the norm and the seed are train.py's own options. Each run trains 90 epochs, its
default; add ``--epochs N``.
"""

import functools
import runpy
import sys

import torch
import torchvision

from ilm_plugins import NORMS

norm, seed = sys.argv.pop(1), sys.argv.pop(1)
torch.manual_seed(int(seed))
if norm != "BN":
    get_model = torchvision.models.get_model
    torchvision.models.get_model = functools.partial(get_model, norm_layer=NORMS[norm])
runpy.run_path("train.py", run_name="__main__")
