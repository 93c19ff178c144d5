"""The rank of this process. Nothing heavy is imported, so that the rank is known at once.

A run on several devices has one process, a rank, for each device. torchrun or SLURM starts all ranks with the same
command line. Otherwise the first rank starts the other ranks: see :mod:`ssd_lightning.cli.launch_ranks`.
"""

import os

wants_traceback = False
"""True if the user asked for tracebacks. All ranks share this choice."""


class FailedElsewhere(Exception):
    """The end of a rank because another rank failed, which has reported the reason."""


def is_first() -> bool:
    """Return True if this process is the rank that writes and prints."""
    if _is_started_by_torchrun():
        return os.environ["RANK"] == "0"
    if _is_started_by_slurm():
        return os.environ.get("SLURM_PROCID", "0") == "0"
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def is_one_of_several_started_alike() -> bool:
    """Return True if several ranks were started with the same command: by torchrun, by SLURM, or by hand."""
    if _is_started_by_torchrun():
        return os.environ["WORLD_SIZE"] != "1"
    return _is_started_by_slurm() or os.environ.get("NODE_RANK", "0") != "0"


def _is_started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _is_started_by_slurm() -> bool:
    """Return True where Lightning sees ranks of SLURM: not for a single task, nor for a shell in an allocation."""
    is_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and not is_shell
