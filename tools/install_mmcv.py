"""Build and install mmcv, which has no published wheel: python tools/install_mmcv.py KIND.

Run it by the Python of the environment that gets mmcv.

compiled
    with mmcv's operators. Compiling takes minutes: the wheel is kept in a folder of the user's
    cache, for environments that are alike.
lite
    without operators, in seconds, for tests that need none.
"""

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[1] / "requirements" / "mmcv.txt"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ilm_plugins" / "wheels"


def pip(*arguments: str | Path) -> None:
    """Run this Python's pip, without the environment's own settings being changed."""
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Python's usual -g takes half of the time of compiling.
    flags = f"{os.environ.get('CPPFLAGS', '')} -g0"
    subprocess.run(command, env={**os.environ, "PATH": path, "CPPFLAGS": flags}, check=True)


def build(folder: Path, *options: str) -> None:
    """Build mmcv's wheel into a folder; pip does not cache the wheel, whichever kind it is."""
    keep = "--no-cache-dir", "--no-deps", "--wheel-dir", folder, "-r", REQUIREMENTS
    pip("wheel", "--progress-bar", "off", *options, *keep)


def install(wheels: Path, *options: str) -> None:
    (wheel,) = wheels.glob("*.whl")
    pip("install", "--no-compile", "--no-index", "--no-deps", *options, wheel)


def kind_of_environment() -> str:
    """Return a name that environments share if a compiled wheel of one works in the other."""
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    architectures = {"sm{}{}".format(*torch.cuda.get_device_capability(i)) for i in gpus}
    chosen = [os.environ[n] for n in ("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST") if n in os.environ]
    devices = "-".join([*sorted(architectures), *chosen]).replace(" ", "_") or "cpu"
    version = "cp{}{}".format(*sys.version_info[:2])
    mmcv = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    return "-".join([version, platform.machine(), f"torch{torch.__version__}", devices, mmcv])


def compiled(cache: Path, options: Sequence[str]) -> None:
    """Install mmcv with its operators, from the kept wheel if there is one."""
    kept = cache / kind_of_environment()
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        # The folder gets its name when it is complete.
        with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as new:
            wheels = Path(new) / "wheels"
            build(wheels, "--no-build-isolation")
            try:
                wheels.rename(kept)
            except OSError:  # another process was faster
                if not kept.is_dir():
                    raise
    install(kept, *options)


def lite(options: Sequence[str]) -> None:
    """Install mmcv without operators, which a build that sees no torch leaves out."""
    with tempfile.TemporaryDirectory() as new:
        build(Path(new))
        install(Path(new), *options)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["compiled", "lite"])
    parser.add_argument("--target", help="a folder beside the environment, for PYTHONPATH")
    parser.add_argument("--wheels", type=Path, default=CACHE, help="where compiled ones are kept")
    args = parser.parse_args()
    options = ["--target", args.target] if args.target else ["--force-reinstall"]
    if args.kind == "lite":
        lite(options)
    else:
        compiled(args.wheels, options)


if __name__ == "__main__":
    main()
