"""A stand-in for timm's train.py, which no package has: its options, and its summary by timm."""

import argparse
from pathlib import Path

import timm
import torch
from timm import utils

import ilm_plugins

p = argparse.ArgumentParser()
p.add_argument("--data-dir")
p.add_argument("--model")
p.add_argument("--model-kwargs", nargs="*", default={}, action=utils.ParseKwargs)
p.add_argument("--seed", type=int)
p.add_argument("--output")
p.add_argument("--experiment")
args = p.parse_args()

utils.random_seed(args.seed, 0)
model = timm.create_model(args.model, num_classes=2, **args.model_kwargs)
images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
folder = utils.get_outdir(args.output, args.experiment)
for epoch in range(2):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    (top1,) = utils.accuracy(model(images), labels)
    utils.update_summary(
        epoch,
        {"loss": loss.item()},
        {"loss": loss.item(), "top1": top1.item()},
        filename=Path(folder, "summary.csv"),
        write_header=epoch == 0,
    )
