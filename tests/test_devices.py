"""The precision that is chosen by default, and precisions that a CPU emulates."""

import pytest
import torch

from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.extra_layers import ExtraLayers
from ssd_lightning.devices import fastest_precision, is_emulated


@pytest.mark.parametrize(
    ("model", "has_amx", "has_avx512_bf16", "expected"),
    [
        (Tiny(), True, True, "bf16-mixed"),
        (Tiny(), False, True, "bf16-mixed"),
        (Tiny(), False, False, "32-true"),
        (ExtraLayers([8], depthwise=True)(8, (4, 4), 1), True, True, "32-true"),
    ],
    ids=["AMX", "AVX-512 alone", "neither", "depthwise"],
)
def test_on_a_cpu_by_its_hardware_and_the_network(
    monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, has_amx: bool, has_avx512_bf16: bool, expected: str
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512_bf16)
    assert fastest_precision("cpu", model) == expected


@pytest.mark.parametrize(("is_supported", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_on_a_gpu_by_its_hardware(monkeypatch: pytest.MonkeyPatch, is_supported: bool, expected: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: is_supported)
    assert fastest_precision("auto", torch.nn.Conv2d(4, 4, 1, groups=4)) == expected


@pytest.mark.parametrize(
    ("precision", "device", "has_bf16", "expected"),
    [
        ("bf16-mixed", "cpu", False, True),
        ("bf16-mixed", "cpu", True, False),
        ("32-true", "cpu", False, False),
        ("bf16-mixed", "cuda", False, False),
    ],
)
def test_a_slow_precision_is_known(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, has_bf16: bool, expected: bool
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    assert is_emulated(precision, torch.device(device)) is expected
