"""A training by the Trainer of transformers, which saves its metrics as its examples do."""

import argparse

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from ilm_plugins import NORMS

p = argparse.ArgumentParser()
p.add_argument("--norm")
p.add_argument("--seed", type=int)
p.add_argument("--output_dir")
args = p.parse_args()


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        norm = {**NORMS, "BN": nn.BatchNorm2d}[args.norm](32)
        self.net = nn.Sequential(nn.Conv2d(3, 32, 3), norm, nn.Flatten(1), nn.Linear(1152, 2))

    def forward(self, images, labels):
        logits = self.net(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def accuracy(prediction):
    return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}


torch.manual_seed(args.seed)
data = [{"images": torch.rand(3, 8, 8), "labels": i % 2} for i in range(8)]
options = TrainingArguments(
    args.output_dir, num_train_epochs=1, use_cpu=True, report_to="none", save_strategy="no"
)
trainer = Trainer(
    Classifier(), options, train_dataset=data, eval_dataset=data, compute_metrics=accuracy
)
trainer.train()
trainer.save_metrics("eval", trainer.evaluate())
