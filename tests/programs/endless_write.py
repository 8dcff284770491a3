"""Replace a file without an end, until the process is killed; the argument is the file."""

import sys

from ilm_plugins.files import replacing

with replacing(sys.argv[1]) as file:
    while True:
        file.write(b"new" * 10000)
