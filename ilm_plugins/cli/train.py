"""The command ``train``: train or evaluate a config of detectron2 or OpenMMLab."""

import argparse
import logging
import os
from dataclasses import replace
from functools import partial

from ..configs import resolve
from ..errors import UserError
from ..frameworks.config import kind_of
from ..frameworks.registrations import Registrations
from ..frameworks.run.options import RunOptions
from ..frameworks.run.processes import available_gpus, check_processes, launch
from ..frameworks.run.training import run as run_training


def run(args: argparse.Namespace) -> None:
    if args.num_gpus is None:
        args.num_gpus = min(1, available_gpus())
    given = {**vars(args), "overrides": tuple(args.overrides)}
    registrations = Registrations.of_options(given.pop("imports"), given.pop("datasets"))
    start(RunOptions.of_command(**given, registrations=registrations))


def start(options: RunOptions) -> None:
    """Train or evaluate; UserError for wrong options, or if one of several processes fails."""
    if options.processes.num_gpus == 0:
        # Before a framework is imported: wherever one sees a GPU, it picks CUDA and NCCL.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    late = [override for override in options.overrides if override.startswith("--")]
    if late:
        raise UserError(f"{late[0]} comes after an override; give options before overrides")
    check_processes(options.processes)
    options = replace(options, config_file=resolve(options.config_file))
    kind = kind_of(options.config_file)  # an error before processes start
    if options.amp and options.processes.device == "cpu":
        raise UserError("--amp is for GPUs; leave it out on the CPU")
    if options.tta and not kind.has_tta:
        raise UserError("--tta is for MMEngine's configs; leave it out")
    launch(partial(train_in_process, options), options.processes)


def train_in_process(options: RunOptions) -> None:
    """Train or evaluate in one process of a run, which knows all datasets and imports."""
    # On a full disk, each line of the log would print a traceback before the command's error.
    logging.raiseExceptions = False
    options.registrations.register(options.config_file)
    run_training(options)
