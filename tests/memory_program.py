"""Trains 1,000 steps with 38 validations, and prints the memory of the process in MiB.

Usage: ``memory_program.py <folder of bananas> <folder for metrics>``. The shape checks of the tests do not run here,
because they take longer than the steps. The output is json: the memory after the first steps and at the end, and the
number of validations.
"""

import ctypes
import gc
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
from small_training import make_data, make_module

from ssd_lightning.training.loggers.metrics_file import MetricsFile

STEPS, STEPS_BETWEEN_VALIDATIONS, FIRST_STEPS = 1000, 26, 200


class Memory(lightning.Callback):
    """The memory of the process, and the number of validations."""

    def __init__(self) -> None:
        self.sizes: list[float] = []
        self.validations = 0

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step in (FIRST_STEPS, STEPS):
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validations += 1


def main(bananas: Path, folder: Path) -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    memory = Memory()
    lightning.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        val_check_interval=STEPS_BETWEEN_VALIDATIONS,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[memory],
        logger=MetricsFile(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(make_module(), make_data(bananas))
    print(json.dumps({"sizes": memory.sizes, "validations": memory.validations}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
