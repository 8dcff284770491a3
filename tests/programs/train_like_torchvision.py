"""A stand-in for the references of torchvision, which no package has: what they print."""

import argparse

import torch
import torchvision

p = argparse.ArgumentParser()
p.add_argument("--model")
p.add_argument("--data-path")
p.add_argument("--output-dir")
args = p.parse_args()

model = torchvision.models.get_model(args.model, weights=None, num_classes=2)
images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
for epoch in range(2):
    acc1 = 100 * (model(images).argmax(1) == labels).float().mean()
    print(f"Epoch: [{epoch}]  [0/1]  eta: 0:00:01  lr: 0.1  acc1: {acc1:.4f} ({acc1:.4f})")
    print(f"Test:   [0/1]  eta: 0:00:00  acc1: {acc1:.4f} ({acc1:.4f})  time: 0.1")
    print(f"Test:  Acc@1 {acc1:.3f} Acc@5 100.000")
