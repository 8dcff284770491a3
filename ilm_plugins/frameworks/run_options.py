"""What the command ``train`` was asked for, passed unchanged to every process of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunOptions:
    """The parsed command line of ``python -m ilm_plugins train``."""

    config_file: str
    #: ``KEY VALUE`` pairs for a yaml config, ``KEY=VALUE`` words for a ``.py``.
    overrides: tuple[str, ...] = ()
    #: GPUs of a machine; 0 for the CPU.
    num_gpus: int = 0
    #: Processes of a machine on the CPU, over gloo.
    num_processes: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"
    resume: bool = False
    eval_only: bool = False
    tta: bool = False
    amp: bool = False
    unsafe: bool = False

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"

    @property
    def local_world_size(self) -> int:
        return self.num_gpus or self.num_processes

    @property
    def world_size(self) -> int:
        return self.num_machines * self.local_world_size
