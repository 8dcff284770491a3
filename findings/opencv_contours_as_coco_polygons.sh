#!/usr/bin/env bash
# OpenCV 4.11 and pycocotools 2.0.11: one polygon, two masks.
#
# Masks become COCO polygons with `cv2.findContours` in many conversion scripts (and in supervision's
# `as_coco`). Expected: pycocotools decodes the same mask from them. Seen: OpenCV's corners are the outermost
# pixels, COCO's are points between pixels; so the mask loses its last row and column, and an object of
# 4 x 4 pixels is 3 x 3 for training and evaluation: a perfect prediction has an IoU of .56, at 8 x 8
# pixels one of .77, below the upper four of COCO's thresholds. `cv2.fillPoly`, the way back, adds a row
# and a column to polygons that follow COCO's rule. The two functions of OpenCV agree with each other, so
# a round trip by OpenCV shows no error.
#
# Encode masks with `pycocotools.mask.encode`, and draw COCO's polygons with `frPyObjects` and `decode`.
# Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==4.11.0.86 pycocotools==2.0.11 numpy==1.26.4
cat > "$folder/polygons.py" <<'PROGRAM'
import cv2
import numpy as np
from pycocotools import mask as masks

SIZE = 100


def read(polygons):
    """Pixels that pycocotools finds in the polygons of an object."""
    return masks.decode(masks.merge(masks.frPyObjects(polygons, SIZE, SIZE)))


for side in (4, 8, 16, 32, 64):
    square = np.zeros((SIZE, SIZE), np.uint8)
    square[10 : 10 + side, 10 : 10 + side] = 1

    contours, _ = cv2.findContours(square, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    there = read([contour.flatten().tolist() for contour in contours])
    overlap = (there & square).sum() / (there | square).sum()
    alone = cv2.fillPoly(np.zeros_like(square), contours, 1)

    first, last = 10, 10 + side
    corners = [[first, first], [last, first], [last, last], [first, last]]
    assert (read([np.ravel(corners).tolist()]) == square).all()
    back = cv2.fillPoly(np.zeros_like(square), [np.int32(corners)], 1)
    print(
        f"{square.sum()} pixels: OpenCV to pycocotools {there.sum()} (IoU {overlap:.2f}),",
        f"to OpenCV {alone.sum()}; pycocotools to OpenCV {back.sum()}",
    )
PROGRAM
expected="16 pixels: OpenCV to pycocotools 9 (IoU 0.56), to OpenCV 16; pycocotools to OpenCV 25
64 pixels: OpenCV to pycocotools 49 (IoU 0.77), to OpenCV 64; pycocotools to OpenCV 81
256 pixels: OpenCV to pycocotools 225 (IoU 0.88), to OpenCV 256; pycocotools to OpenCV 289
1024 pixels: OpenCV to pycocotools 961 (IoU 0.94), to OpenCV 1024; pycocotools to OpenCV 1089
4096 pixels: OpenCV to pycocotools 3969 (IoU 0.97), to OpenCV 4096; pycocotools to OpenCV 4225"
seen=$("$folder/venv/bin/python" "$folder/polygons.py")
echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "changed: expected" >&2
    echo "$expected" >&2
    exit 1
fi
