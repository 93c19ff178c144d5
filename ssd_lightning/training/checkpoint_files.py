"""The files of checkpoints during a training, which are written as a whole or not at all."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ssd_lightning.run_folder import written_whole
from ssd_lightning.training.checkpoint import read_checkpoint

RUN_KEYS = ("state_dict", "optimizer_states", "loops", "pytorch-lightning_version")
"""Keys of a Lightning checkpoint that are needed to resume a run."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that keeps the former file when the disk is full or the process is killed.

    Lightning's own writer uses the system's temporary folder, and a move to another disk is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint as a whole or not at all.

        Raises:
            OSError: with the file and the system's reason, such as a full disk.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with written_whole(path) as file:
                _save(checkpoint, file)
        except OSError as error:
            raise OSError(f"checkpoint: {error}") from error

    def load_checkpoint(self, path: str | Path, *args: Any, **settings: Any) -> dict[str, Any]:
        """Read the checkpoint of a run to resume.

        Raises:
            ValueError: with the file, if the file is missing, no checkpoint, or lacks the state of a run.
        """
        content = read_checkpoint(path)
        missing = [key for key in RUN_KEYS if key not in content]
        if missing:
            raise ValueError(f"checkpoint: expected a run to resume, got {path}, which lacks {', '.join(missing)}")
        return content


def _save(checkpoint: dict[str, Any], file: Any) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        # When a write fails, torch.save raises an error about file positions. The system's reason is its context.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise cause from error
