"""Prints the help of every command, and fails if a library that takes long to import was imported for it."""

import sys

from ssd_lightning.cli import commands

for name in commands.COMMANDS:
    sys.argv = [name, "--help"]
    getattr(commands, name.removeprefix("ssd-"))()

heavy = {"torch", "lightning", "matplotlib", "pandas"} & set(sys.modules)
sys.exit(f"imported for --help: {heavy}" if heavy else 0)
