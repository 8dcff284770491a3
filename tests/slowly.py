"""tools/train_net.py, whose checkpoints reach the disk slowly, piece by piece."""

import io
import sys
import time
from pathlib import Path

from ilm_plugins.checkpoints import PARTIAL
from ilm_plugins.cli.train_net import main

SECONDS = 1.5


class SlowFile(io.FileIO):
    """A file that takes some time for a checkpoint, whatever its size."""

    def write(self, data):
        pieces = memoryview(data).cast("B")
        size = max(1, len(pieces) // 100)
        for start in range(0, len(pieces), size):
            super().write(pieces[start : start + size])
            if len(pieces) > 10_000:
                time.sleep(SECONDS / 100 * min(1, len(pieces) / 1_000_000))
        return len(pieces)


def slow_open(path, mode="r", *args, **options):
    if ".pth." in path.name and path.name.endswith(PARTIAL):
        return SlowFile(path, mode.replace("b", ""))
    return fast_open(path, mode, *args, **options)


fast_open = Path.open

if __name__ == "__main__":
    Path.open = slow_open
    sys.exit(main(sys.argv[2:]))  # behind the name of the tool
