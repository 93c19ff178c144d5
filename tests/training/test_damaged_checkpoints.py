"""Checkpoints whose bytes have changed, and weights that are not finite."""

import random
from pathlib import Path

import pytest
import torch
from small_training import make_module

from ssd_lightning.detector.weights import read_file
from ssd_lightning.training.checkpoint import CONFIG_KEY, load_detector
from ssd_lightning.training.pretrained import load_pretrained


@pytest.fixture(scope="module")
def checkpoint(trained) -> Path:
    return trained.folder / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_changed_bytes_are_found(checkpoint: Path, tmp_path: Path, place: float):
    content = bytearray(checkpoint.read_bytes())
    start = int(place * len(content))
    content[start : start + 400] = random.Random(0).randbytes(400)
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"^checkpoint: .*damaged\.ckpt.* (damaged|incomplete)"):
        load_detector(damaged)
    with pytest.raises(ValueError, match=r"^pretrained: .*damaged\.ckpt.* (damaged|incomplete)"):
        load_pretrained(make_module().model, damaged)


def test_one_flipped_bit_in_a_weight_is_found(checkpoint: Path, tmp_path: Path):
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    largest = max(weights.values(), key=torch.Tensor.numel)
    content = bytearray(checkpoint.read_bytes())
    start = content.find(bytes(largest.untyped_storage()))
    assert start > 0
    content[start + 1000] ^= 1
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(content)
    torch.load(damaged, weights_only=True)  # torch alone would use it.
    with pytest.raises(ValueError, match=r"^weights: .*damaged\.ckpt.*checksum of .*data/"):
        read_file(damaged, "weights")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(checkpoint: Path, tmp_path: Path, value: float):
    content = torch.load(checkpoint, weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("weight"))
    content["state_dict"][name][0].fill_(value)
    path = tmp_path / "nan.ckpt"
    torch.save(content, path)
    assert CONFIG_KEY in content
    with pytest.raises(ValueError, match=r"^checkpoint: expected finite weights.*nan\.ckpt"):
        load_detector(path)
    model = load_detector(checkpoint).model
    with pytest.raises(ValueError, match=r"^pretrained: expected finite weights.*nan\.ckpt"):
        load_pretrained(model, path)
