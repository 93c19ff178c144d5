"""The precision that is chosen where none is."""

import pytest
import torch

from ssd_lightning.detector.presets import build_model
from ssd_lightning.devices import fastest_precision


@pytest.mark.parametrize(
    ("name", "has_amx", "expected"),
    [
        ("tiny_ssd", True, "bf16-mixed"),
        ("tiny_ssd", False, "32-true"),
        ("ssd300_vgg16", True, "bf16-mixed"),
        ("ssdlite320_mobilenet_v2", True, "32-true"),
    ],
)
def test_on_a_cpu_by_its_unit_for_matrices_and_by_the_network(
    monkeypatch: pytest.MonkeyPatch, name: str, has_amx: bool, expected: str
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    with torch.device("meta"):
        model = build_model(name, 1)
    assert fastest_precision("cpu", model) == expected


@pytest.mark.parametrize(("is_supported", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_on_a_gpu_by_what_it_says(monkeypatch: pytest.MonkeyPatch, is_supported: bool, expected: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: is_supported)
    assert fastest_precision("auto", torch.nn.Conv2d(4, 4, 1, groups=4)) == expected
