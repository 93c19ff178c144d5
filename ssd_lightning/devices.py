"""When the values of a tensor may be looked at."""

import ctypes
import sys

import torch
from torch import Tensor, nn


def can_read(tensor: Tensor) -> bool:
    """Whether counting or reading its values costs nothing: an accelerator would wait, a compiled graph would break.

    Few of the thousands of default boxes count in a loss. Where they can be counted the others are left out, which
    saves most of the work; elsewhere they are computed and masked. Both give the same numbers.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt(3)."""
LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of giving them back to the system.

    The activations of a step are larger than glibc's threshold for mapping memory afresh, which costs a page fault for
    every 4 KiB of every activation of every step: without this, TinySSD trains about half as fast on a CPU. For the
    whole process; does nothing where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)


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
