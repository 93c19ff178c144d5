"""Runs commands while packages that they must not need cannot be imported: run folder, picture, data set."""

import contextlib
import sys

from ssd_lightning.cli import commands

run_folder, picture, data = sys.argv[1:]


class Blocked:
    """A finder that refuses packages, as if they were not installed."""

    def __init__(self) -> None:
        self.packages: set[str] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"{name} was imported", name=name)


def run(name: str, *arguments: str) -> None:
    sys.argv = [f"ssd-{name}", *arguments, f"hydra.run.dir=out/{name}"]
    getattr(commands, name)()


blocked = Blocked()
sys.meta_path.insert(0, blocked)
blocked.packages = {"torch", "torchvision", "lightning", "torchmetrics", "matplotlib"}
with contextlib.suppress(SystemExit):
    run("compare", "runs=nowhere")
print("loaded", *(blocked.packages & set(sys.modules)))
blocked.packages.remove("matplotlib")
run("compare", f"runs={run_folder}")
print("loaded", *(blocked.packages & set(sys.modules)))
blocked.packages = {"lightning"}
run("predict", run_folder, picture, "num_workers=0")
run("evaluate", run_folder, "num_workers=0", "why_missed=true")
run("export", run_folder, "data=banana", f"data.root={data}", "num_workers=0")
run("check", "data=banana", f"data.root={data}")
run("benchmark", run_folder, "repeats=1", "warm_up=1")
print("loaded", *(blocked.packages & set(sys.modules)))
