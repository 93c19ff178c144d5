"""Weights of backbones from strangers: one line names the file, whatever its tensors are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from ssd_lightning.detector.backbones.torchvision_features import TorchvisionFeatures
from ssd_lightning.detector.backbones.vgg import VGG16

WHOLE = torch.zeros(1)
FULL = {"classifier.0.weight": WHOLE.expand(4096, 512 * 49), "classifier.3.weight": WHOLE.expand(4096, 4096)}


@pytest.mark.parametrize(
    "state",
    [
        {"features.0.weight": torch.zeros(())},
        {f"{'9' * 5000}.weight": WHOLE},
        {"classifier.0.weight": torch.zeros(()), "classifier.3.weight": torch.zeros(())},
        FULL,
        {**FULL, "classifier.0.bias": torch.zeros(()), "classifier.3.bias": torch.zeros(())},
    ],
)
def test_vgg16_refuses_odd_entries(tmp_path: Path, state: dict[str, Any]):
    path = tmp_path / "odd.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"^weights: expected .*odd\.pth") as caught:
        VGG16(weights=str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [torch.Tensor.long, torch.Tensor.to_sparse, lambda value: value.sum()])
@pytest.mark.parametrize("bgr", [False, True])
def test_features_refuse_odd_tensors(tmp_path: Path, change: Any, bgr: bool):
    path = tmp_path / "odd.pth"
    state = models.resnet18(weights=None).state_dict()
    state["conv1.weight"] = change(state["conv1.weight"])
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"^weights: expected .*odd\.pth") as caught:
        TorchvisionFeatures("resnet18", ["layer2", "layer3"], weights=str(path), bgr=bgr)
    assert "\n" not in str(caught.value)
