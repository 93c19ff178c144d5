"""Which of the processes of a run this one is. Nothing heavy is imported, so that it is known at once.

Of several devices each has a process, a rank. Either torchrun or SLURM starts all of them with the same command line,
or the first rank of a machine starts the others: see :mod:`ssd_lightning.cli.launch_ranks`.
"""

import os

wants_traceback = False
"""Whether the user does, of every rank."""


class FailedElsewhere(Exception):
    """This rank ends because another has failed, which tells why."""


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    if _is_started_by_torchrun():
        return os.environ["RANK"] == "0"
    if _is_started_by_slurm():
        return os.environ.get("SLURM_PROCID", "0") == "0"
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def is_one_of_several_started_alike() -> bool:
    """By torchrun or SLURM, or by hand on several machines."""
    if _is_started_by_torchrun():
        return os.environ["WORLD_SIZE"] != "1"
    return _is_started_by_slurm() or os.environ.get("NODE_RANK", "0") != "0"


def _is_started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _is_started_by_slurm() -> bool:
    """As Lightning sees it, to which one task, or a shell within an allocation, is not."""
    is_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and not is_shell
