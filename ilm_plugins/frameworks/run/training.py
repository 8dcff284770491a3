"""The part of ``train`` that both frameworks share: config, folder and its lock, record."""

from contextlib import nullcontext

from ...errors import writing_to
from ...files import lock, make_folder
from ...trust import loading
from ..config import open_config
from .options import RunOptions
from .record import RunRecord, is_rank_zero, write_divergence


def run(options: RunOptions) -> None:
    """Train, or evaluate with ``eval_only``, in this process of a run."""
    path, device = options.config_file, options.processes.device
    with loading(unsafe=options.unsafe):
        opened = open_config(path, options.overrides, device, options.amp)
        if not options.eval_only:
            opened.check_training(options.registrations.names)
        opened.check_test()
        folder = opened.settings[opened.keys["folder"]]
        # Before the framework's own code changes the config.
        of_test, norms = opened.digest_of_test(), opened.settings_of_norms()
        amp = opened.uses_amp()
        of_config = opened.framework, of_test, norms, amp, opened.packages
        record = RunRecord(folder, options, *of_config)
        weights = opened.settings.get(opened.keys["weights"])
        record.check_norms(weights, bool(opened.settings.get("resume")))
        if options.eval_only:
            make_folder(folder)
        is_locked = is_rank_zero() and not options.eval_only
        with writing_to(folder), lock(folder) if is_locked else nullcontext():
            try:
                opened.run(record)
            except FloatingPointError as error:  # of a loss of NaN
                write_divergence(folder, str(error))
                raise
