"""The hash of the kernels' sources, which tells a library that was compiled from other sources.

setup.py runs this file by itself, and compiles the hash into the library.
"""

from hashlib import sha256
from pathlib import Path


def hash_sources(folder: Path) -> str:
    """Return a hash of the names and contents of all C++ files in a folder."""
    digest = sha256()
    for path in sorted(folder.rglob("*.[ch]pp")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()
