"""Compare norms in timm's train.py: copy this file beside it, and give there

    python -m ilm_plugins compare batchnorm2d en --seeds 0 1 2 3 4 \
        --metric eval_top1:run/summary.csv \
        --command "python compare_timm.py --data-dir imagenet --model resnet50 \
        --model-kwargs norm_layer={norm} --seed {seed} --output {output} --experiment run"

Each run trains 300 epochs, timm's default; add ``--epochs N``.
"""

import runpy

import ilm_plugins  # noqa: F401  timm's norm_layer then knows our keys, in lower case

runpy.run_path("train.py", run_name="__main__")
