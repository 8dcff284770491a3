#!/usr/bin/env bash
# supervision 0.31.2: saving a COCO dataset fills the holes of its objects.
#
# An object with a hole (a ring, a window frame, a tyre) is stored in COCO's format
# as a run-length code, with `iscrowd` 0. Expected: `DetectionDataset.from_coco` and `as_coco`, to split or
# merge a dataset, keep the mask. Seen: it is loaded with its hole, but saved as polygons: the outline
# of the hole is one more polygon of the object, and COCO's format unites all polygons of an object.
# So the hole is filled wherever the file is read, by supervision too, while `area` still says otherwise.
# An object whose annotation has no `iscrowd` suffers the same, because the loader sets it to 0.
#
# Keep the run-length codes: copy `segmentation` from the old file to the new one, or encode the masks
# with pycocotools. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet supervision==0.31.2 pycocotools==2.0.11 opencv-python-headless==4.11.0.86 numpy==1.26.4
cat > "$folder/holes.py" <<'PROGRAM'
import contextlib
import json
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO

ring = np.zeros((100, 120), np.uint8)
ring[10:50, 10:50] = 1
ring[15:45, 15:45] = 0
code = masks.encode(np.asfortranarray(ring))
annotation = {
    "id": 1,
    "image_id": 1,
    "category_id": 1,
    "iscrowd": 0,
    "bbox": [10, 10, 40, 40],
    "area": int(ring.sum()),
    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
}
data = {
    "images": [{"id": 1, "file_name": "image.png", "width": 120, "height": 100}],
    "categories": [{"id": 1, "name": "ring"}],
    "annotations": [annotation],
}
Path("images").mkdir()
Image.fromarray(np.zeros((100, 120, 3), np.uint8)).save("images/image.png")
Path("first.json").write_text(json.dumps(data))

loaded = sv.DetectionDataset.from_coco("images", "first.json", force_masks=True)
loaded.as_coco(annotations_path="second.json")
again = sv.DetectionDataset.from_coco("images", "second.json", force_masks=True)
for title, dataset, file in (("first", loaded, "first.json"), ("second", again, "second.json")):
    ((_, _, detections),) = dataset
    with contextlib.redirect_stdout(None):
        read = COCO(file)
    (saved,) = read.loadAnns(read.getAnnIds())
    found = read.annToMask(saved)
    print(
        f"{title} file: area {saved['area']:.0f}, the middle of the ring is",
        f"{found[30, 30]} to pycocotools and {int(detections.mask[0][30, 30])} to supervision",
    )
    print(f"  pixels of the mask: {found.sum()} to pycocotools, {detections.mask.sum()} to supervision")
PROGRAM
expected="first file: area 700, the middle of the ring is 0 to pycocotools and 0 to supervision
  pixels of the mask: 700 to pycocotools, 700 to supervision
second file: area 700, the middle of the ring is 1 to pycocotools and 1 to supervision
  pixels of the mask: 1521 to pycocotools, 1600 to supervision"
seen=$(cd "$folder" && venv/bin/python holes.py)
echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "changed: expected" >&2
    echo "$expected" >&2
    exit 1
fi
