"""What the devices are good at."""

import torch
from torch import nn


def fastest_precision(accelerator: str, model: nn.Module) -> str:
    """``bf16-mixed`` where the hardware multiplies matrices in it, else ``32-true``.

    On a CPU with AMX it doubles the speed of TinySSD's training step; on one that has no such unit it is slower. So it
    is for depthwise convolutions, which are no products of matrices: 0.73 times as fast with MobileNetV2.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator in ("mps", "gpu") or (accelerator == "auto" and torch.backends.mps.is_available()):
        return "32-true"
    has_depthwise = any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in model.modules())
    return "bf16-mixed" if torch.cpu._is_amx_tile_supported() and not has_depthwise else "32-true"
