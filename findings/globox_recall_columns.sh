#!/usr/bin/env bash
# globox 2.9.0: in its table of classes, AR 1, AR 10 and AR 100 hold the average precision.
#
# `COCOEvaluator.save_csv`, `show_summary` and `globox evaluate` list each class with AP, AP by size,
# AR 1, AR 10, AR 100 and AR by size. Expected: those columns are the class's recall, as the methods give
# it. Seen: the three AR columns hold AP for that number of detections. A detector that finds every object,
# with false positives of higher scores, then reads as one that misses half; and "AR 100" always equals "AP".
# The row of totals in `show_summary` and the columns AR S, AR M and AR L are right.
#
# Read the recall of a class from `evaluator.ndets_100_evaluation()[label]["ar"]`.
# Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet globox==2.9.0 numpy==1.26.4
cat > "$folder/recall.py" <<'PROGRAM'
import csv

from globox import Annotation, AnnotationSet, BoundingBox, COCOEvaluator


def box(left, confidence=None):
    return BoundingBox(label="cat", xmin=left, ymin=0, xmax=left + 50, ymax=50, confidence=confidence)


# One cat, found exactly, behind one false positive of a higher score.
evaluator = COCOEvaluator(
    ground_truths=AnnotationSet([Annotation("image", (640, 480), [box(0)])]),
    predictions=AnnotationSet([Annotation("image", (640, 480), [box(300, 0.9), box(0, 0.8)])]),
)
evaluator.save_csv("table.csv")
with open("table.csv", newline="") as file:
    (row,) = csv.DictReader(file)
recalls = {
    "AR 1": evaluator.ndets_1_evaluation(),
    "AR 10": evaluator.ndets_10_evaluation(),
    "AR 100": evaluator.ndets_100_evaluation(),
}
print("AP 50:95:", float(row["AP 50:95"]))
for name, evaluation in recalls.items():
    print(f"{name}: in the table {float(row[name])}, by the method {float(evaluation['cat']['ar'])}")
PROGRAM
expected="AP 50:95: 0.5
AR 1: in the table 0.0, by the method 0.0
AR 10: in the table 0.5, by the method 1.0
AR 100: in the table 0.5, by the method 1.0"
seen=$(cd "$folder" && venv/bin/python recall.py)
echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "changed: expected" >&2
    echo "$expected" >&2
    exit 1
fi
