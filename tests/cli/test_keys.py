"""Keys of the command line: what is accepted, with or without a plus, and what is refused."""

import re

import pytest

from ssd_lightning.cli.commands import EVALUATE, PREDICT, TRAIN
from ssd_lightning.cli.keys import check_keys


@pytest.mark.parametrize(
    ("typed", "passed_on"),
    [
        ("seed=3", "seed=3"),
        ("+seed=3", "seed=3"),  # Hydra alone refuses a plus where the key exists,
        ("++seed=3", "seed=3"),
        ("trainer.check_val_every_n_epoch=5", "++trainer.check_val_every_n_epoch=5"),  # and its absence elsewhere.
        ("+trainer.check_val_every_n_epoch=5", "++trainer.check_val_every_n_epoch=5"),
        ("loss.classification.negative_ratio=5", "++loss.classification.negative_ratio=5"),
        ("optimizer.eps=1e-7", "++optimizer.eps=1e-7"),
        ("data.num_train=8", "++data.num_train=8"),
        ("name=a b", "name=a b"),
    ],
)
def test_a_key_that_a_part_takes_needs_no_plus(typed: str, passed_on: str):
    assert check_keys(TRAIN, [typed]) == [passed_on]


def test_options_groups_and_keys_of_hydra_are_passed_on():
    arguments = ["-m", "--cfg", "job", "loss=focal,giou", "~callbacks.learning_rate", "hydra.run.dir=a", "seed=0,1"]
    assert check_keys(TRAIN, arguments) == arguments


def test_keys_are_those_of_the_chosen_options():
    assert check_keys(TRAIN, ["callbacks=[ema]", "callbacks.average.decay=0.9"])[1] == "++callbacks.average.decay=0.9"
    with pytest.raises(ValueError, match=r"^callbacks\.average\.decay: expected a key of ssd-train"):
        check_keys(TRAIN, ["callbacks.average.decay=0.9"])


def test_a_part_of_ones_own_is_added_by_its_target():
    arguments = [
        "+callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping",
        "callbacks.mine.monitor=val/loss",
    ]
    assert check_keys(TRAIN, arguments) == [
        "++callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping",
        "++callbacks.mine.monitor=val/loss",
    ]


@pytest.mark.parametrize("sign", ["", "+"])
@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("epochs=3", "Try trainer.max_epochs=3."),
        ("lr=1e-3", "Try optimizer.lr=1e-3."),
        ("modle=tiny_ssd", "Try model=tiny_ssd."),
        ("batchsize=3", "Try batch_size=3."),
        ("trainer.max_epoch=3", "Try trainer.max_epochs=3."),
        ("data.num_trian=8", "Try data.num_train=8."),
        ("xyz=1", "Try ssd-train --help."),
        ("callbacks.mine.monitor=1", "Try callbacks.best.monitor=1."),
    ],
)
def test_a_key_that_nothing_reads_is_refused_with_the_nearest_one(sign: str, typed: str, advice: str):
    key = typed.partition("=")[0]
    with pytest.raises(ValueError, match=f"^{re.escape(key)}: expected .* {re.escape(advice)}$"):
        check_keys(TRAIN, [sign + typed])


@pytest.mark.parametrize("command", [EVALUATE, PREDICT])
def test_settings_that_replace_those_of_a_checkpoint(command):
    assert check_keys(command, ["postprocess.nms_threshold=0.6"]) == ["++postprocess.nms_threshold=0.6"]
    with pytest.raises(ValueError, match=r"Try postprocess\.nms_threshold=0\.6\.$"):
        check_keys(command, ["postprocess.nms_treshold=0.6"])


def test_a_sweep_is_checked_before_its_first_job(run, tmp_path):
    outcome = run("ssd-train", "-m", "loss=multibox,focal", "optimizer.lr=1,2", "sed=1")
    assert outcome.exit_code == 1
    assert outcome.error == "ssd-train: sed: expected a key of ssd-train, got sed=1. Try seed=1.\n"
    assert not list(tmp_path.iterdir())
