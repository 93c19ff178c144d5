"""Several devices: two or three processes give the results of one, and start, fail and stop together."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ddp_program
import numpy as np
import pytest
import torch
from command_line import QUICK
from ddp_program import STEPS, VALIDATIONS
from places import TESTS
from processes import MODULE, TRAIN, catches, finish, free_port, is_running, start, wait_for

from ssd_lightning.cli import ranks
from ssd_lightning.data.batches import Key
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.run_folder import flatten, read_metrics
from ssd_lightning.scoring.stored_detections import load_detections
from ssd_lightning.signals import STARTED_BY

FROZEN = [*QUICK, "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "model.frozen_batch_norm=true"]
"""Arguments with frozen batch norm, since its statistics depend on the pictures of a rank."""
FAILS = "+callbacks.fails._target_=added_callbacks.Fail"

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning", "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*deprecated.*"
)


# --- training and validation ---


def run_ranks(folder: Path, count: int) -> None:
    """Run the program on some ranks, each of which saves its outcome."""
    common = {"WORLD_SIZE": str(count), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    program = str(TESTS / "ddp_program.py")
    processes = [start(folder, program, str(folder), LOCAL_RANK=str(rank), **common) for rank in range(count)]
    for process in processes:
        finish(process)


def outcomes(folder: Path, count: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{count}_ranks_{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="session")
def two(made_once) -> list[dict[str, Any]]:
    return outcomes(made_once("two_ranks", lambda folder: run_ranks(folder, 2)), 2)


@pytest.fixture(scope="session")
def three(made_once) -> list[dict[str, Any]]:
    return outcomes(made_once("three_ranks", lambda folder: run_ranks(folder, 3)), 3)


@pytest.fixture(scope="session")
def one_validates() -> dict[str, Any]:
    return ddp_program.validations(1)


@pytest.fixture(scope="session")
def one_trains() -> dict[str, Any]:
    return ddp_program.gradients(1)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "without_objects"), STEPS)
def test_2_by_16_is_1_by_32(two, one_trains, loss: str, without_objects: str):
    """The gradient is equal to 1e-6 of its length, and the logged loss too, with frozen batch norm."""
    (expected, logged), (found, found_logged) = (
        outcome[f"{loss}, {without_objects}"] for outcome in (one_trains, two[0]["gradients"])
    )
    length = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    apart = torch.cat([(found[name] - gradient).flatten() for name, gradient in expected.items()]).norm()
    assert length > 0.01
    assert apart <= 1e-6 * length
    assert float(found_logged) == pytest.approx(float(logged), rel=1e-6)
    other, other_logged = two[1]["gradients"][f"{loss}, {without_objects}"]
    assert all(torch.equal(other[name], gradient) for name, gradient in found.items())
    assert torch.equal(other_logged, found_logged)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["two", "three"])
@pytest.mark.parametrize("name", VALIDATIONS)
def test_validation_on_several_ranks_is_that_on_one(request, one_validates, ranks: str, name: str):
    """The values are equal to the bit on every rank, also with fewer batches than ranks."""
    values, *records = one_validates[name]
    assert len(records[0][0]) > 100
    for rank, outcome in enumerate(request.getfixturevalue(ranks)):
        found, *found_records = outcome["validations"][name]
        assert found == values
        if rank == 0:
            for record, expected in zip(found_records, records, strict=True):
                assert all(torch.equal(ours, column) for ours, column in zip(record, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["two", "three"])
def test_what_is_validated_while_training_is_what_is_saved(request, ranks: str):
    """The batch norm of each rank has gathered different statistics."""
    outcomes = [outcome["fit"] for outcome in request.getfixturevalue(ranks)]
    module = ddp_program.make_module()
    [saved] = {outcome["best"] for outcome in outcomes}
    module.load_state_dict(torch.load(saved, weights_only=True)["state_dict"])
    data = ddp_program.make_data(ddp_program.Pictures(2), ddp_program.Pictures(5), 2)
    [values] = ddp_program.make_trainer(1).validate(module, data, verbose=False)
    rows = read_metrics(Path(saved).parent / f"of_{len(outcomes)}" / "metrics.csv").values()
    logged = [{key: value for key, value in row.items() if key.startswith("val/")} for row in rows if "val/loss" in row]
    assert len(logged) == 2
    assert values == min(logged, key=lambda row: row["val/loss"])
    for outcome in outcomes:
        assert outcome["values"] == outcomes[0]["values"]
        assert outcome["steps"] == 2 * (ddp_program.NUM_TRAIN // len(outcomes) // 2)
        for name, parameter in outcome["parameters"].items():
            assert torch.equal(parameter, outcomes[0]["parameters"][name]), name


class OfRank:
    """The attributes of a trainer that a datamodule reads."""

    train_dataloader = None

    def __init__(self, rank: int, count: int) -> None:
        self.global_rank, self.world_size, self.num_devices = rank, count, count


def data_of(rank: int, count: int, pictures: int, batch_size: int) -> DetectionDataModule:
    pictures_ = ddp_program.Pictures(pictures)
    data = ddp_program.make_data(pictures_, pictures_, batch_size)
    data.setup()
    data.trainer = OfRank(rank, count)
    return data


@pytest.mark.parametrize(("pictures", "batch_size", "count"), [(5, 2, 2), (5, 2, 3), (3, 2, 3), (1, 4, 2), (16, 2, 4)])
def test_each_validation_batch_is_of_one_rank(pictures: int, batch_size: int, count: int):
    alone = list(data_of(0, 1, pictures, batch_size).val_dataloader().batch_sampler)
    assert [key for batch in alone for key in batch] == [Key(0, index) for index in range(pictures)]
    shared = [list(data_of(rank, count, pictures, batch_size).val_dataloader().batch_sampler) for rank in range(count)]
    for whole, *of_ranks in zip(alone, *shared, strict=True):
        assert sorted(of_ranks) == [*[[]] * (count - 1), whole]
    most = max(sum(map(bool, batches)) for batches in shared)
    assert most == -(-len(alone) // count)


def test_a_batch_of_another_rank_is_empty():
    [batch] = data_of(1, 2, 1, 4).val_dataloader()
    assert batch.images.shape[:2] == (0, 3)
    assert batch.image_ids.shape == (0,)
    assert batch.image_sizes.shape == (0, 2)


def test_ranks_share_a_batch_that_is_greater_than_their_part():
    """A rank has 6 pictures, and a batch 8."""
    batches = [list(data_of(rank, 2, 12, 8).train_dataloader()) for rank in range(2)]
    ids = [batch.image_ids.tolist() for [batch] in batches]
    assert sorted(ids[0] + ids[1]) == list(range(12))


def test_fewer_pictures_than_ranks_are_refused():
    with pytest.raises(ValueError, match=r"^data: .* got 2 for 3"):
        data_of(0, 3, 2, 1).train_dataloader()


def test_resumed_on_another_number_of_ranks_is_refused():
    state = data_of(0, 2, 12, 2).train_dataloader().state_dict()
    data = data_of(0, 3, 12, 2)
    data.load_state_dict(state)
    with pytest.raises(ValueError, match=r"^resume: expected 2 devices .* got 3"):
        data.train_dataloader()


# --- the command ---


@pytest.fixture(scope="session")
def choices(bananas: Path) -> list[str]:
    return ["data=banana", f"data.root={bananas}", *FROZEN, "trainer=ddp_cpu", "batch_size=2"]


@pytest.fixture(scope="session")
def trained(choices: list[str], made_once) -> tuple[Path, str, str]:
    """The run folder of a training on two ranks, and what they printed."""

    def train(folder: Path) -> None:
        (folder / "work").mkdir()
        texts = finish(start(folder / "work", *TRAIN, *choices, "hydra.run.dir=run"))
        for name, text in zip(("out", "error"), texts, strict=True):
            (folder / name).write_text(text)

    folder = made_once("trained_on_two_ranks", train)
    return folder / "work" / "run", (folder / "out").read_text(), (folder / "error").read_text()


def assert_same_metrics(found: Path, expected: Path) -> None:
    ours, theirs = (read_metrics(folder / "metrics.csv") for folder in (found, expected))
    assert list(ours) == list(theirs)
    for step, row in theirs.items():
        assert ours[step] == pytest.approx(row, rel=1e-4, abs=1e-6), step


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.slow
def test_two_devices_train_what_one_trains(run, trained, choices: list[str], tmp_path: Path):
    alone = [choice for choice in choices if choice not in ("trainer=ddp_cpu", "batch_size=2")]
    outcome = run("ssd-train", *alone, "trainer=cpu", "batch_size=4", "hydra.run.dir=alone")
    assert outcome.exit_code == 0, outcome.error
    assert_same_metrics(trained[0], tmp_path / "alone")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (trained[0], tmp_path / "alone")]
    assert summaries[0]["scores"] == pytest.approx(summaries[1]["scores"], rel=1e-4, abs=1e-6)
    assert [summary["world_size"] for summary in summaries] == [2, 1]
    assert summaries[0]["steps"] == summaries[1]["steps"] == 2 * 12 // 4
    files = [{str(path.relative_to(f)) for path in f.rglob("*")} for f in (trained[0], tmp_path / "alone")]
    assert files[0] == files[1]


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.slow
def test_the_best_weights_score_on_one_device_as_on_two(run, trained, tmp_path: Path):
    folder, _, _ = trained
    scored = run(
        "ssd-evaluate",
        f"checkpoint={folder}/checkpoints/best.ckpt",
        "device=cpu",
        "batch_size=2",
        "num_workers=0",
        "hydra.run.dir=scores",
    )
    assert scored.exit_code == 0, scored.error
    ours, theirs = (load_detections(path / "detections.npz") for path in (folder, tmp_path / "scores"))
    for found, expected in zip((*ours.detections, *ours.objects), (*theirs.detections, *theirs.objects), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_everything_is_printed_and_counted_once(trained):
    folder, out, error = trained
    assert out.count("Results:") == out.count("default boxes") == 1
    assert len(re.findall(r"^epoch ", out, re.MULTILINE)) == 2
    assert "2 × cpu" in out
    assert "GLOBAL_RANK" not in out + error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if "LeafSpec" in line]) <= 1
    summary = json.loads((folder / "summary.json").read_text())
    pictures = summary["images_per_second"] * summary["train_seconds"]
    assert pictures == pytest.approx(2 * 12, rel=0.06 / summary["train_seconds"])  # seconds are rounded
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "how", "expected"),
    [
        (1, "user's mistake", r"ssd-train: rank 1 fails"),
        (0, "our mistake", r"TypeError: rank 0 fails"),
        (1, "is killed", r"ssd-train: the process of rank 1 was killed by SIGKILL"),
    ],
)
def test_when_a_rank_fails_all_end_and_one_reports_why(
    choices: list[str], tmp_path: Path, rank: int, how: str, expected: str
):
    arguments = [FAILS, f"+callbacks.fails.rank={rank}", "+callbacks.fails.step=1", f'+callbacks.fails.how="{how}"']
    _, error = finish(start(tmp_path, *TRAIN, *choices, *arguments, "hydra.run.dir=run"), exit_code=1)
    assert len(re.findall(expected, error)) == 1
    assert len(re.findall(r"^(?:\[rank\d\]: )?(?:ssd-train: |\w+Error: )", error, re.MULTILINE)) == 1
    assert error.count("Traceback (most recent call last)") == (1 if how == "our mistake" else 0)


@pytest.mark.slow
def test_other_ranks_end_with_the_first_even_if_it_is_killed(choices: list[str], tmp_path: Path):
    process = paused_run(tmp_path, choices)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not is_running(process.pid), patience=10)
    assert not is_running(process.pid)


def other_ranks(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes of the other ranks that a process has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    # ssd-train starts Python with -P, torchrun with -u. Any other child, such as git, has the words of this process for
    # a moment, which have no option of Python.
    words = {child: Path(f"/proc/{child}/cmdline").read_text().split("\0") for child in children}
    return [int(child) for child in children if tuple(words[child][2:4]) == MODULE]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_while_ranks_start_ends_all(choices: list[str], tmp_path: Path, rank: int):
    """The first rank waits for the second, which is importing torch."""
    process = start(tmp_path, *TRAIN, *choices, "hydra.run.dir=run")
    wait_for(lambda: other_ranks(process), process)
    os.kill([process.pid, *other_ranks(process)][rank], signal.SIGTERM)
    began = time.monotonic()
    _, error = finish(process, exit_code=128 + signal.SIGTERM)
    assert time.monotonic() - began < 10
    [line] = [line for line in error.splitlines() if line.startswith("ssd-train: ")]
    assert line.startswith("ssd-train: interrupted by SIGTERM")


@pytest.mark.slow
def test_ranks_that_would_train_other_things_are_refused(choices: list[str], tmp_path: Path):
    """LOCAL_RANK is not set on the first rank."""
    different = [FAILS, "+callbacks.fails.rank=9", "+callbacks.fails.how=never", "seed=${oc.env:LOCAL_RANK,0}"]
    arguments = [*different, "+callbacks.fails.step=${oc.env:LOCAL_RANK,0}"]
    _, error = finish(start(tmp_path, *TRAIN, *choices, *arguments, "hydra.run.dir=run"), exit_code=1)
    last = error.strip().splitlines()[-1]
    assert last.startswith("ssd-train: ranks: ")
    assert "callbacks.fails.step: 0 and 1, seed: 0 and 1" in last
    assert error.count("rank 0 and rank 1") == 1
    assert not (tmp_path / "run").exists()


def paused_run(tmp_path: Path, choices: list[str]) -> subprocess.Popen[str]:
    """Start a run, and wait for the pause in its second epoch."""
    pause = ["+callbacks.pause._target_=added_callbacks.PauseAtStep", "+callbacks.pause.step=4"]
    process = start(tmp_path, *TRAIN, *choices, *pause, "hydra.run.dir=run")
    wait_for((tmp_path / "run" / "paused").exists, process)
    return process


def stop(process: subprocess.Popen[str], tell: Callable[[int, int], None]) -> None:
    tell(process.pid, signal.SIGTERM)
    _, error = finish(process, exit_code=128 + signal.SIGTERM)
    assert error.strip().splitlines()[-1].startswith("ssd-train: stopped by SIGTERM; ")
    assert error.count("stopped by") == 1


@pytest.mark.slow
def test_a_signal_that_all_ranks_get_stops_them_once(choices: list[str], tmp_path: Path):
    stop(paused_run(tmp_path, choices), os.killpg)
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


@pytest.mark.slow
def test_a_run_whose_first_rank_is_stopped_ends_as_the_undisturbed_one(
    run, trained, choices: list[str], tmp_path: Path
):
    stop(paused_run(tmp_path, choices), os.kill)
    before = (tmp_path / "run/.hydra/config.yaml").read_bytes()
    trust = "trusted_packages=[added_callbacks]"
    refused = run("ssd-train", f"resume={tmp_path / 'run'}", trust, "trainer.devices=1", "trainer.strategy=auto")
    assert refused.exit_code == 1
    assert re.search("resume: expected 2 devices .* got 1", refused.error)
    assert (tmp_path / "run/.hydra/config.yaml").read_bytes() == before

    finish(start(tmp_path, *TRAIN, "resume=run", trust, "~callbacks.pause"))
    first, second = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (trained[0], tmp_path / "run")
    )
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    assert read_metrics(tmp_path / "run/metrics.csv") == read_metrics(trained[0] / "metrics.csv")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (trained[0], tmp_path / "run")]
    assert summaries[0]["scores"] == summaries[1]["scores"]
    assert "pause" not in (tmp_path / "run/.hydra/config.yaml").read_text()


def torchrun(folder: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """Start two launchers, as on two machines."""
    here = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    nodes = [["-m", "torch.distributed.run", *here, f"--node_rank={node}"] for node in (0, 1)]
    return [start(folder, *node, *MODULE, *arguments, "trainer.devices=1", "trainer.num_nodes=2") for node in nodes]


@pytest.mark.slow
def test_torchrun_on_two_machines_gives_one_run(trained, choices: list[str], tmp_path: Path):
    outputs = [finish(process) for process in torchrun(tmp_path, *choices, "hydra.run.dir=run")]
    assert "AP50" in outputs[0][0]
    # The second machine may have to wait while the first reads the data.
    assert re.sub(r"Waiting for another process that works in .*\n", "", outputs[1][0]) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert read_metrics(tmp_path / "run/metrics.csv") == read_metrics(trained[0] / "metrics.csv")
    files = [{str(path.relative_to(f)) for path in f.rglob("*")} for f in (trained[0], tmp_path / "run")]
    assert files[0] == files[1]

    fails = [FAILS, "+callbacks.fails.rank=1", "+callbacks.fails.step=1", '+callbacks.fails.how="user\'s mistake"']
    failed = [finish(process, 1)[1] for process in torchrun(tmp_path, *choices, *fails, "hydra.run.dir=failed")]
    assert "".join(failed).count("ssd-train: rank 1 fails") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "rank"), [("start", 0), ("start", 1), ("sanity_check", 1), ("validate", 1)])
def test_a_signal_to_one_rank_of_torchrun_ends_all(choices: list[str], tmp_path: Path, moment: str, rank: int):
    """All ranks have the exit code of the signal, before torchrun would kill them after 30 seconds."""
    pause = ["+callbacks.pause._target_=added_callbacks.PauseInValidation", f"+callbacks.pause.moment={moment}"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *MODULE, *choices]
    process = start(tmp_path, *command, *([] if moment == "start" else pause), "hydra.run.dir=run")
    wait_for(lambda: len(other_ranks(process)) == 2, process)
    if moment == "start":
        wait_for(lambda: all(catches(each, signal.SIGTERM) for each in other_ranks(process)), process)
    else:
        wait_for((tmp_path / "paused").exists, process)
    os.kill(sorted(other_ranks(process))[rank], signal.SIGTERM)
    _, error = finish(process, exit_code=1)
    codes = set(re.findall(r"exitcode +: (-?\d+)", error))
    assert codes == {str(128 + signal.SIGTERM)}, error
    assert len(re.findall("ssd-train: interrupted by SIGTERM", error)) == 1


@pytest.mark.slow
def test_torchrun_needs_a_folder_that_all_know(choices: list[str], tmp_path: Path):
    for process in torchrun(tmp_path, *choices):
        assert "ssd-train: hydra.run.dir: expected a folder that all ranks share" in finish(process, exit_code=1)[1]
    assert list(tmp_path.iterdir()) == []


# --- which rank this is ---


@pytest.mark.parametrize(
    ("variables", "is_first", "is_one_of_several"),
    [
        ({}, True, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", STARTED_BY: "1"}, False, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False, True),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, True, True),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, False, True),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, True, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}, True, True),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "train"}, False, True),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}, True, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "interactive"}, True, False),
    ],
)
def test_which_rank(monkeypatch, variables: dict[str, str], is_first: bool, is_one_of_several: bool):
    for name in list(os.environ):
        if name.startswith(("SLURM", "TORCHELASTIC")) or name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks.is_first() == is_first
    assert ranks.is_one_of_several_started_alike() == is_one_of_several


def test_keys_are_written_as_on_the_command_line():
    config = {"seed": 0, "optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "logger": {}, "data": None}
    assert flatten(config) == {
        "seed": 0,
        "optimizer.lr": 0.1,
        "optimizer.betas": [0.9, 0.99],
        "logger": {},
        "data": None,
    }
