"""The command ``train``: train or evaluate a config of detectron2 or OpenMMLab."""

import argparse

from ..frameworks.registrations import Registrations
from ..frameworks.run.options import RunOptions
from ..frameworks.run.processes import available_gpus
from ..frameworks.run.training import start


def run(args: argparse.Namespace) -> None:
    if args.num_gpus is None:
        args.num_gpus = min(1, available_gpus())
    given = {**vars(args), "overrides": tuple(args.overrides)}
    registrations = Registrations.of_options(given.pop("imports"), given.pop("datasets"))
    start(RunOptions(**given, registrations=registrations))
