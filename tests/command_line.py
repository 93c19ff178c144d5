"""Arguments of a short training, and commands in a process of their own."""

import sys

COMMANDS = ("ssd-train", "ssd-evaluate", "ssd-predict", "ssd-check", "ssd-boxes", "ssd-compare")
QUICK = [
    "model.image_size=64",
    "batch_size=4",
    "num_workers=0",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.precision=32-true",
]


def subprocess_command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", f"from ssd_lightning.cli.commands import {name}; {name}()", *arguments]
