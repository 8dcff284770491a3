"""The options of the command ``train``."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Processes:
    """The processes of a run, on one machine or several."""

    #: GPUs of a machine; 0 for the CPU.
    num_gpus: int = 0
    #: Processes of a machine on the CPU, over gloo.
    num_processes: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"

    @property
    def local_world_size(self) -> int:
        return self.num_gpus or self.num_processes

    @property
    def world_size(self) -> int:
        return self.num_machines * self.local_world_size


@dataclass(frozen=True)
class RunOptions:
    """The parsed command line of ``python -m ilm_plugins train``."""

    config_file: str
    #: ``KEY VALUE`` pairs for a yaml config, ``KEY=VALUE`` words for a ``.py``.
    overrides: tuple[str, ...] = ()
    processes: Processes = field(default_factory=Processes)
    resume: bool = False
    eval_only: bool = False
    tta: bool = False
    amp: bool = False
    unsafe: bool = False

    @classmethod
    def of_command(cls, config_file: str, **given: Any) -> "RunOptions":
        """Return the options from arguments, which include the fields of :class:`Processes`."""
        names = {field.name for field in fields(Processes)}
        processes = {name: value for name, value in given.items() if name in names}
        others = {name: value for name, value in given.items() if name not in names}
        return cls(config_file, processes=Processes(**processes), **others)
