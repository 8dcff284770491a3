"""Compare norms in a training by Lightning; put your model and data in place of these:

    python -m ilm_plugins compare BN EN --seeds 0 1 2 3 4 \
        --metric "val_acc:lightning_logs/*/metrics.csv" \
        --command "python examples/compare_lightning.py {norm} {seed} {output}"

Each run trains 3 epochs, see ``max_epochs``.
"""

import sys

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ilm_plugins import NORMS

name, seed, output = sys.argv[1:]


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        norm = {**NORMS, "BN": nn.BatchNorm2d}[name](32)
        pool = nn.AdaptiveAvgPool2d(1)
        self.net = nn.Sequential(
            nn.Conv2d(3, 32, 3), norm, nn.ReLU(), pool, nn.Flatten(1), nn.Linear(32, 2)
        )

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def images(number):
    """Return noise, of which every second image is red."""
    labels = torch.arange(number) % 2
    red = torch.tensor([0.3, 0, 0]).view(3, 1, 1) * labels.view(-1, 1, 1, 1)
    return TensorDataset(torch.rand(number, 3, 16, 16) + red, labels)


seed_everything(int(seed))
training = DataLoader(images(64), batch_size=8, shuffle=True)
trainer = Trainer(max_epochs=3, logger=CSVLogger(output), enable_progress_bar=False)
trainer.fit(Classifier(), training, DataLoader(images(32), batch_size=8))
