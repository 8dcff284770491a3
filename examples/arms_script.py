"""Compare EN with BN's two remedies without a new layer, in a training script of your own:

    python -m ilm_plugins compare BN EN --seeds 0 1 2 3 4 --metric top1:results.json \
        --arm BN+standardized BN --standardize --arm BN+test-statistics BN --test-statistics \
        --command "python examples/arms_script.py {norm} {seed} {output} TRAIN TEST"

TRAIN and TEST are folders of class folders. An arm's words are added to the command.
"""

import argparse
import json

import torch
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.transforms import v2

from ilm_plugins import NORMS


def standardize(image):
    return (image - image.mean()) / image.std(correction=0).clamp_min(1e-6)


parser = argparse.ArgumentParser()
for name in ("norm", "seed", "output", "train", "test"):
    parser.add_argument(name)
for name in ("--standardize", "--test-statistics"):
    parser.add_argument(name, action="store_true")
args = parser.parse_args()
torch.manual_seed(int(args.seed))
plain = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
steps = [v2.ToImage(), v2.Resize((64, 64)), v2.ToDtype(torch.float32, scale=True)]
transform = v2.Compose([*steps, standardize if args.standardize else plain])
train, test = (datasets.ImageFolder(one, transform) for one in (args.train, args.test))
model = models.resnet18(norm_layer=NORMS.get(args.norm), num_classes=len(train.classes))
optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
for _ in range(2):
    for images, labels in DataLoader(train, 8, shuffle=True, drop_last=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
if args.test_statistics:
    update_bn(DataLoader(test, 8, shuffle=True), model)
model.eval()
with torch.no_grad():
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in DataLoader(test, 8))
with open(f"{args.output}/results.json", "w") as file:
    json.dump({"top1": 100 * right / len(test)}, file)
