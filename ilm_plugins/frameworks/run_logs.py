"""The numbers that detectron2 and MMEngine log during a training, by step."""

import json
import sys
from collections import defaultdict
from pathlib import Path

#: Files in a run's folder with a JSON object on each line: detectron2's, and MMEngine's, which has
#: one for each start of a training.
LOGS = "metrics.json", "*/vis_data/scalars.json"


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return name -> step -> value of all finite numbers in the logs of a run, by growing step.

    A step is the number of iterations, or of epochs for what MMEngine logs after an epoch. A
    training that was killed and resumed goes back by some steps; the earlier values of these and
    later steps are dropped.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in (path for pattern in LOGS for path in sorted(folder.glob(pattern))):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                # detectron2 counts iterations from 0, and logs after them.
                step = entry["step"] if "step" in entry else entry["iteration"] + 1
            # Such as a line that a kill has cut.
            except (KeyError, TypeError, ValueError, RecursionError):
                continue
            if not isinstance(step, int):
                continue
            for name, value in entry.items():
                if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
                    values = found[name]
                    while values and next(reversed(values)) >= step:
                        values.popitem()
                    values[step] = value
    return dict(found)
