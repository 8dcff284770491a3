"""The command ``train``: check its options, start its processes, train or evaluate in each."""

import logging
import os
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from ...configs import resolve
from ...errors import UserError, writing_to
from ...files import lock, make_folder
from ...trust import loading
from ..config import kind_of, open_config
from .options import RunOptions
from .processes import check_processes, launch
from .record import RunRecord, is_rank_zero, write_divergence


def start(options: RunOptions) -> None:
    """Train or evaluate; UserError for wrong options, or if one of several processes fails."""
    if options.num_gpus == 0:
        # Before a framework is imported: wherever one sees a GPU, it picks CUDA and NCCL.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    late = [override for override in options.overrides if override.startswith("--")]
    if late:
        raise UserError(f"{late[0]} comes after an override; give options before overrides")
    check_processes(options)
    if options.amp and options.device == "cpu":
        raise UserError("--amp is for GPUs; leave it out on the CPU")
    options = replace(options, config_file=resolve(options.config_file))
    kind = kind_of(options.config_file)  # an error before processes start
    if options.tta and not kind.has_tta:
        raise UserError("--tta is for MMEngine's configs; leave it out")
    launch(partial(run_in_process, options), options)


def run_in_process(options: RunOptions) -> None:
    """Train, or evaluate with ``eval_only``, in this process of a run."""
    # On a full disk, each line of the log would print a traceback before the command's error.
    logging.raiseExceptions = False
    options.registrations.register(options.config_file)
    with loading(unsafe=options.unsafe):
        device = options.device
        opened = open_config(options.config_file, options.overrides, device, options.amp)
        if not options.eval_only:
            opened.check_training(options.registrations.names)
        opened.check_test()
        folder = opened.settings[opened.keys["folder"]]
        # Before the framework's own code changes the config.
        record = RunRecord(
            folder,
            options,
            opened.framework,
            opened.settings_of_norms(),
            opened.uses_amp(),
            opened.packages,
        )
        if options.resume or opened.settings.get("resume"):
            record.check_norms()
        if options.eval_only:
            make_folder(folder)
        is_locked = is_rank_zero() and not options.eval_only
        with writing_to(folder), lock(folder) if is_locked else nullcontext():
            try:
                opened.run(record)
            except FloatingPointError as error:  # of a loss of NaN
                write_divergence(folder, str(error))
                raise
