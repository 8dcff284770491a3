"""The packages that ``make gpu`` needs; nothing here imports torch."""

import sys
from importlib.util import find_spec

#: First word of parts' names, the table, or all -> modules that they need.
NEEDS = {
    "all": ("torch", "wrapt"),
    "tests": ("pytest", "xdist"),
    "step": ("torchvision",),
    "host": ("matplotlib", "pandas"),
    "facades": ("mmengine", "numpy", "PIL"),
    "table": ("matplotlib", "pandas"),
}
#: Module -> what pip installs, if not its name; torch and torchvision come from one index.
PACKAGES = {
    **{"PIL": "pillow", "mmengine": "onedl-mmengine", "xdist": "pytest-xdist"},
    "torchvision": "torch torchvision",
}


def check_needs() -> set[str]:
    """Return the kinds of parts that miss a module, and print what installs all of them.

    Raises:
        SystemExit: if no part can run.
    """
    missing = {module for modules in NEEDS.values() for module in modules if is_missing(module)}
    without = {kind for kind, modules in NEEDS.items() if missing & {*modules}}
    packages = {*" ".join(PACKAGES.get(module, module) for module in missing).split()}
    install = f"pip install {' '.join(sorted(packages))}"
    if lacking := [module for module in NEEDS["all"] if module in missing]:
        sys.exit(f"error: {sys.executable} lacks {' and '.join(lacking)}: {install}")
    if without:
        print(f"left out: {', '.join(sorted(without))}; to add them: {install}", flush=True)
    return without


def is_missing(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:
        return True
