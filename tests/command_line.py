"""Commands as tests run them: in this process where possible, else in a process of their own."""

import importlib
import io
import logging
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest
from hydra._internal.hydra import Hydra

COMMANDS = (
    *("ssd-train", "ssd-evaluate", "ssd-predict", "ssd-export"),
    *("ssd-benchmark", "ssd-check", "ssd-boxes", "ssd-compare"),
)

QUICK = [
    "model.image_size=64",
    "batch_size=4",
    "num_workers=0",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.precision=32-true",
    # Few detections, since drawing them takes longer than finding them.
    "++postprocess.max_detections=20",
]
"""Arguments of a short training."""


class Outcome(NamedTuple):
    """The end of a command."""

    exit_code: int
    out: str
    error: str

    @property
    def message(self) -> str:
        """The last line of the errors, of a command that failed without a traceback."""
        assert "Traceback" not in self.error
        return self.error.strip().splitlines()[-1]


def run_command(name: str, *arguments: str) -> Outcome:
    """Run a command in this process, from the current folder."""
    out, error = io.StringIO(), io.StringIO()
    exit_code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setattr(sys, "argv", [name, *arguments])
        # Commands change this variable. The patch gives it a former value, to which it is set back.
        patch.setenv("HYDRA_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0"))
        # Hydra composes the whole config to look for its mode, which only these arguments can set.
        if not any(word in argument for argument in arguments for word in ("hydra.mode", "hparams_search", "config-")):
            patch.setattr(Hydra, "get_mode", lambda hydra, config_name, overrides: None)
        # Hydra's handlers write to what is redirected here.
        patch.setattr(logging.root, "handlers", list(logging.root.handlers))
        try:
            getattr(importlib.import_module("ssd_lightning.cli.commands"), name.removeprefix("ssd-"))()
        except SystemExit as exit_:
            exit_code = exit_.code if isinstance(exit_.code, int) else 1
    return Outcome(exit_code, out.getvalue(), error.getvalue())


def subprocess_command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", f"from ssd_lightning.cli.commands import {name}; {name}()", *arguments]
