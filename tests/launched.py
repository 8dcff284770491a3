"""What the processes do that tests start by ilm_plugins.frameworks.launch."""

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise

import torch

from ilm_plugins import errors


def options(what, processes=1, of=0, **more):
    """The command line of a run of :func:`main`; ``what`` is done in the process of rank ``of``."""
    return argparse.Namespace(
        what=what,
        of=of,
        num_gpus=0,
        num_processes=processes,
        num_machines=2 if processes == 1 else 1,
        machine_rank=0,
        launcher="none",
        dist_url="tcp://127.0.0.1:1",
        eval_only=False,
        traceback=False,
        **more,
    )


def main(args, cfg=None):
    if args.what == "threads":
        if int(os.environ["RANK"]) == args.of:
            print(torch.get_num_threads(), flush=True)
        return
    if int(os.environ["RANK"]) != args.of:
        # As in a collective operation, which waits for the others.
        time.sleep(600)
    if args.what == "defect":
        raise ZeroDivisionError("of a worker")
    if args.what == "sys.exit":
        sys.exit(1)
    if args.what == "exit":
        os._exit(7)
    if args.what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if args.what == "rest":
        child = subprocess.Popen(["sleep", "600"])
        print(os.getpid(), child.pid, flush=True)
        time.sleep(600)
    if args.what == "faults":
        print(page_faults(), flush=True)
        return
    raise getattr(errors, args.what)("what came in; what to do")


def page_faults():
    """The fewest page faults of this process in filling one of ten tensors of 64 MiB."""
    counts = []
    for _ in range(10):
        torch.ones(2**24)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return min(later - before for before, later in pairwise(counts))
