"""The checkpoint that a command loads."""

from pathlib import Path
from typing import Any

from ssd_lightning.cli.screen import screen
from ssd_lightning.training.pretrained import weights_file


def chosen_weights(given: Any) -> Path:
    """Return the file of ``checkpoint=…``, and print it if a run folder or a name was given.

    Raises:
        ValueError: if the value is no text, or names nothing.
    """
    path = weights_file(given, "checkpoint")
    if path != Path(given).expanduser():
        screen().print(f"Weights: {path}", soft_wrap=True)
    return path
