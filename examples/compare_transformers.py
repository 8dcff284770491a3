"""Compare norms in a training by the Trainer of transformers; put your model and data in:

    python -m ilm_plugins compare BN EN --seeds 0 1 2 3 4 --metric eval_accuracy:eval_results.json \
        --command "python examples/compare_transformers.py {norm} {seed} {output}"

Each run trains 3 epochs, see ``num_train_epochs``.
"""

import sys

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from ilm_plugins import NORMS

name, seed, output = sys.argv[1:]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        norm = {**NORMS, "BN": nn.BatchNorm2d}[name](32)
        pool = nn.AdaptiveAvgPool2d(1)
        self.net = nn.Sequential(
            nn.Conv2d(3, 32, 3), norm, nn.ReLU(), pool, nn.Flatten(1), nn.Linear(32, 2)
        )

    def forward(self, images, labels):
        logits = self.net(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def images(number):
    """Return noise, of which every second image is red."""
    red = torch.tensor([0.3, 0, 0]).view(3, 1, 1)
    return [{"images": torch.rand(3, 16, 16) + i % 2 * red, "labels": i % 2} for i in range(number)]


def accuracy(prediction):
    return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}


torch.manual_seed(int(seed))
options = TrainingArguments(
    output, num_train_epochs=3, seed=int(seed), report_to="none", save_strategy="no"
)
trainer = Trainer(
    Classifier(),
    options,
    train_dataset=images(64),
    eval_dataset=images(32),
    compute_metrics=accuracy,
)
trainer.train()
trainer.save_metrics("eval", trainer.evaluate())
