"""A run that is killed at random moments and resumed ends as the undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ssd_lightning.run_folder import read_metrics

KILLS = 5
EPOCHS = 6
STEPS = 6 * EPOCHS
ARGUMENTS = [
    "data=banana",
    "model.image_size=64",
    "batch_size=2",
    "num_workers=1",
    "trainer=cpu",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.log_every_n_steps=1",
    "trainer.precision=32-true",
    "callbacks=[ema,every_n_steps,early_stopping]",
    "callbacks.steps.every_n_train_steps=1",
    "+callbacks.average.decay=0.9",
]


PARTS = (
    "epoch",
    "global_step",
    "state_dict",
    "current_model_state",
    "averaging_state",
    "optimizer_states",
    "lr_schedulers",
)
"""The parts of a checkpoint that are compared."""


def values(content: Any, name: str = "") -> dict[str, Any]:
    """Return the values in nested dictionaries and lists, by path."""
    if isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return {path: value for key, child in pairs for path, value in values(child, f"{name}/{key}").items()}
    return {name: content}


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments(bananas: Path, tmp_path: Path):
    """Runs are forked from a process that has imported everything, so that kills hit the training."""
    done = subprocess.run(
        [sys.executable, __file__, f"data.root={bananas}", *ARGUMENTS],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    killed_at = json.loads(done.stdout)
    assert len(killed_at) == KILLS
    assert len({step for step in killed_at if 0 < step < STEPS}) >= 3, killed_at

    folders = [tmp_path / name for name in ("undisturbed", "killed")]
    for name in ("best.ckpt", "last.ckpt"):
        contents = [torch.load(folder / "checkpoints" / name, weights_only=True) for folder in folders]
        expected, found = ({part: values(content[part]) for part in PARTS} for content in contents)
        for part in PARTS:
            assert found[part].keys() == expected[part].keys()
            for key, value in expected[part].items():
                same = torch.equal(found[part][key], value) if isinstance(value, torch.Tensor) else None
                assert found[part][key] == value if same is None else same, f"{name}: {part}{key}"
    metrics = [(folder / "metrics.csv").read_text() for folder in folders]
    assert metrics[0] == metrics[1]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    for key in ("scores", "best_step", "steps", "epochs"):
        assert summaries[0][key] == summaries[1][key]
    assert [path.name for path in (folders[1] / "checkpoints").iterdir()].count("last.ckpt") == 1
    assert not list((folders[1] / "checkpoints").glob(".*.part"))


def start(arguments: list[str]) -> int:
    """Start ``ssd-train`` in a process of its own, and return the process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.setsid()
        sys.argv = ["ssd-train", *arguments]
        commands.train()
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit(Path("log.txt").read_text()[-3000:])


def disturb(arguments: list[str]) -> list[int]:
    """Kill a run at random moments, then let it end. Return the saved step after each kill."""
    rng, folder, saved = random.Random(0), Path("killed"), [0]
    finish(start([*arguments, "hydra.run.dir=undisturbed"]))
    while True:
        last = folder / "checkpoints" / "last.ckpt"
        if not last.exists():
            shutil.rmtree(folder, ignore_errors=True)
        child = start([f"resume={folder}"] if last.exists() else [*arguments, f"hydra.run.dir={folder}"])
        if len(saved) == KILLS + 1:
            finish(child)
            return saved[1:]
        if len(saved) > 1:  # The first process is killed at its start.
            wait_for_step(folder / "metrics.csv", saved[-1] + rng.randrange(5))
        time.sleep(rng.uniform(0, 0.2))
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved.append(torch.load(last, weights_only=True)["global_step"] if last.exists() else 0)


def wait_for_step(metrics: Path, step: int, patience: float = 120) -> None:
    end = time.monotonic() + patience
    while max(read_metrics(metrics), default=-1) < step:
        if time.monotonic() > end:
            raise SystemExit(f"step {step} was not reached: {Path('log.txt').read_text()[-3000:]}")
        time.sleep(0.01)


if __name__ == "__main__":
    import ssd_lightning.cli.train  # noqa: F401  # Before the fork.
    from ssd_lightning.cli import commands

    torch.set_num_threads(1)
    print(json.dumps(disturb(sys.argv[1:])))
