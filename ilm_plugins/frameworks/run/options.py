"""The options of the command ``train``."""

import shlex
from dataclasses import dataclass, field

from ..registrations import Registrations


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
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
class RunOptions(ProcessOptions):
    """The parsed command line of ``python -m ilm_plugins train``."""

    config_file: str
    #: ``KEY VALUE`` pairs for a yaml config, ``KEY=VALUE`` for a ``.py``.
    overrides: tuple[str, ...] = ()
    eval_only: bool = False
    resume: bool = False
    tta: bool = False
    amp: bool = False
    unsafe: bool = False
    registrations: Registrations = field(default_factory=Registrations)

    def command(self) -> str:
        """Return the command line; a training's starts it anew, without ``--resume``.

        In an evaluation's, ``--resume`` tells which checkpoint was used.
        """
        given = vars(self) | {"resume": self.resume and self.eval_only}
        default = vars(RunOptions(""))
        # Always with the number of GPUs, whose default depends on the machine.
        arguments = ["--config-file", self.config_file, "--num-gpus", str(self.num_gpus)]
        arguments += self.registrations.arguments()
        in_place = "config_file", "num_gpus", "overrides", "registrations"
        # Of a cluster, not of the run: another port is no other evaluation.
        not_recorded = "dist_url", "machine_rank"
        for name, value in given.items():
            if name not in (*in_place, *not_recorded) and value != default[name]:
                arguments.append("--" + name.replace("_", "-"))
                arguments += [] if value is True else [str(value)]
        return shlex.join(["python", "-m", "ilm_plugins", "train", *arguments, *self.overrides])
