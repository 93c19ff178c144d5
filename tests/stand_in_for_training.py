"""Stands in for the training of a sweep's job: writes a summary whose scores are the learning rate + seed/100.

Some values of the config change this: ``name=slow`` waits for a signal, ``batch_size=3`` fails until REPAIRED is
set, ``name=validates`` has the scores of four validations, which rise by the learning rate, and waits for a signal if
the rate is below 0.15, and ``batch_size=5`` ends when ``jobs_at_once`` jobs have begun.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import yaml

from ssd_lightning.signals import end_with_the_process_that_started_this


def save_and_stop(number: int, frame: object) -> NoReturn:
    # The sweep passes on a signal that the terminal has sent here too, and both are one request, as in a training.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.touch()
    sys.exit(f"ssd-train: stopped by {signal.Signals(number).name}; saved in {checkpoint}")


def wait_until_others_have_begun() -> None:
    (folder / "began").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.parent.glob("*/began"))) < config["jobs_at_once"] and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # in which a job too many would begin


[folder_name] = [a.partition("=")[2].strip('"') for a in sys.argv if a.startswith(("hydra.run.dir=", "resume="))]
folder = Path(folder_name)
config = yaml.load((folder / ".hydra/config.yaml").read_text(), yaml.CSafeLoader)
checkpoint = folder / "checkpoints/last.ckpt"
resumed = checkpoint.exists()
if config["name"] == "slow" and not resumed:
    signal.signal(signal.SIGTERM, save_and_stop)
    signal.signal(signal.SIGINT, save_and_stop)
    end_with_the_process_that_started_this(can_save=True)
    (folder / "trains").touch()
    time.sleep(60)
began = time.time()
if config["batch_size"] == 3 and not os.environ.get("REPAIRED"):
    print("a warning", file=sys.stderr)
    sys.exit("ssd-train: out of memory")
if config["name"] == "validates":
    rate = config["optimizer"]["lr"]
    rows = [f"{place},{place * rate}\n" for place in range(1, 5)]
    (folder / "metrics.csv").write_text("step,val/map_50\n" + "".join(rows))
    if rate < 0.15:
        signal.signal(signal.SIGTERM, save_and_stop)
        time.sleep(60)
if config["batch_size"] == 5:
    wait_until_others_have_begun()
score = round(config["optimizer"]["lr"] + config["seed"] / 100, 6)
summary = {
    "scores": {f"val/{name}": score for name in ("map_50", "map", "map_voc07", "map_voc12")},
    "parameters": 1000000,
    "resumed": resumed,
    "began": began,
    "ended": time.time(),
    "environment": dict(os.environ),
    "arguments": sys.argv[1:],
    "cwd": os.getcwd(),
}
(folder / "summary.json").write_text(json.dumps(summary))
