#!/usr/bin/env bash
# torch 2.11.0: a DataLoader's iterator that the garbage collector finds in a reference cycle waits five seconds for each of its workers.
#
# A trainer keeps the iterator of its DataLoader, and the trainer is part of a reference cycle, as
# MMEngine's Runner and many trainers with hooks are. Guess: when the trainer is collected, the
# iterator's `__del__` tells the workers to end, and they end at once, as they do when the last
# reference to the iterator goes away. Seen: the collector finalizes the queues of the cycle first, so
# the message never reaches a worker. `__del__` waits five seconds for one worker after the other,
# and then terminates them: 3 workers take 15 seconds, with and without `persistent_workers`. No
# message. Without a cycle it is a tenth of a second.
#
# Delete the iterator before the trainer, or drop the cycle. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/cycle.py" <<'PROGRAM'
import gc
import time

from torch.utils.data import DataLoader


class Trainer:
    """Keeps an iterator of a loader, and itself in a cycle."""

    def __init__(self, workers, persistent, cycle):
        loader = DataLoader(range(1000), num_workers=workers, persistent_workers=persistent)
        self.batches = iter(loader)
        self.hook = self if cycle else None
        next(self.batches)


def seconds(*options):
    gc.collect()
    trainer = Trainer(*options)
    begin = time.perf_counter()
    del trainer
    gc.collect()
    return time.perf_counter() - begin


for persistent in (False, True):
    alone = seconds(3, persistent, False)
    found = [seconds(workers, persistent, True) for workers in (1, 3)]
    print(f"persistent_workers={persistent}: no cycle {alone:.1f} s; in a cycle, 1 worker "
          f"{found[0]:.1f} s, 3 workers {found[1]:.1f} s")
    assert alone < 3
    assert 4.5 < found[0] < 8
    assert 14 < found[1] < 20
PROGRAM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.2.6
"$folder/venv/bin/python" "$folder/cycle.py"
