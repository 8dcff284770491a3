"""A training by Lightning with its CSVLogger."""

import argparse

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ilm_plugins import NORMS

p = argparse.ArgumentParser()
p.add_argument("--norm")
p.add_argument("--seed", type=int)
p.add_argument("--output")
args = p.parse_args()


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        norm = {**NORMS, "BN": nn.BatchNorm2d}[args.norm](32)
        self.net = nn.Sequential(nn.Conv2d(3, 32, 3), norm, nn.Flatten(1), nn.Linear(1152, 2))

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


seed_everything(args.seed)
data = TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 2)
loader = DataLoader(data, batch_size=4)
trainer = Trainer(
    max_epochs=2,
    accelerator="cpu",
    logger=CSVLogger(args.output),
    log_every_n_steps=1,
    enable_progress_bar=False,
)
trainer.fit(Classifier(), loader, loader)
