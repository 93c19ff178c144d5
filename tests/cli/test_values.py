"""Limits of values, which hold for all commands and are checked before torch is imported."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from ssd_lightning.cli.values import check_values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.limit_train_batches", 0),
        ("trainer.limit_train_batches", 0.0),
        ("trainer.limit_train_batches", 1.5),
        ("trainer.val_check_interval", 0),
        ("trainer.val_check_interval", -1),
        ("trainer.max_steps", 0),
        ("trainer.max_steps", -2),
        ("trainer.min_epochs", "a"),
        ("trainer.gradient_clip_val", -1),
        ("trainer.gradient_clip_val", "abc"),
        ("draw", "abc"),
        ("draw", None),
        ("augmented", 3),
        ("compile", "maybe"),
        ("why_missed", "yes"),
        ("draw_threshold", None),
        ("draw_threshold", float("nan")),
        ("iou_threshold", 0),
        ("least_reached", 2),
        ("jobs_at_once", 0),
        ("boxes_budget", 0),
        ("compile", 1),
        ("trainer.precision", "bf16-true"),
        ("trainer.precision", 64),
    ],
)
def test_a_value_outside_its_limits_is_refused(key: str, value: object):
    config = OmegaConf.create()
    OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(ValueError, match=f"^{key}: expected .*, got {value}$"):
        check_values(config)


@pytest.mark.parametrize("size", [100_000, [300, 5000]])
def test_an_image_size_that_would_take_hours_is_refused(size: object):
    with pytest.raises(ValueError, match=r"^model\.image_size: expected at most 4096 pixels, got (100000|5000)$"):
        check_values(OmegaConf.create({"model": {"image_size": size}}))


def test_values_within_their_limits_and_null_for_no_limit():
    check_values(
        OmegaConf.create(
            {
                "seed": 0,
                "num_workers": None,
                "least_reached": None,
                "draw": False,
                "trainer": {
                    "max_epochs": -1,
                    "max_steps": -1,
                    "limit_train_batches": 1.0,
                    "limit_val_batches": 1,
                    "val_check_interval": 0.25,
                    "gradient_clip_val": None,
                },
                "model": {"image_size": [300, 512]},
            }
        )
    )


def test_a_wrong_value_is_reported_without_importing_torch(tmp_path):
    program = (
        "import sys; sys.argv = ['ssd-train', 'batch_size=0']; from ssd_lightning.cli.commands import train\n"
        "try:\n    train()\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "False\n"
    assert done.stderr == "ssd-train: batch_size: expected a whole number of at least 1, got 0\n"
    assert not list(tmp_path.iterdir())
