"""Settings by device: the precision of training, the number of workers, and the memory allocator of a CPU."""

import ctypes
import os
import sys

import torch
from torch import nn


def fastest_precision(accelerator: str, model: nn.Module) -> str:
    """Return ``bf16-mixed`` where the hardware multiplies matrices in it, else ``32-true``.

    On a CPU with AMX or AVX-512 BF16, bf16 doubles the speed of the training step of TinySSD, ResNet-18 and VGG16; on
    another CPU it is slower. Depthwise convolutions are no matrix products: MobileNetV3 trains at 0.84 times the speed.

    Args:
        accelerator: Lightning's name, such as ``auto``.
        model: the network to train.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator in ("mps", "gpu") or (accelerator == "auto" and torch.backends.mps.is_available()):
        return "32-true"
    has_depthwise = any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in model.modules())
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 and not has_depthwise else "32-true"


def is_emulated(precision: str, device: torch.device) -> bool:
    """Return True if the convolutions of a CPU convert each number of this precision, which is slow.

    On an AMD EPYC with AVX2 alone, a 3 × 3 convolution of 256 channels took 100 times as long in bf16 as in float32.
    """
    if device.type != "cpu" or precision == "32-true":
        return False
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_device(name: str) -> torch.device:
    """Return the device of a name such as ``cuda:1``; ``auto`` is the best device of the machine.

    Raises:
        ValueError: if the machine has no such device.
    """
    if name == "auto":
        return torch.device(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected one that this machine has, got {name} ({reason}). Try device=auto."
        ) from error
    return device


def free_cores(most: int = 8, processes: int = 1) -> int:
    """Return the number of workers per process, where ``processes`` share the cores that this process may use.

    One core of each process is left for its own work.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(most, max(1, cores // processes - 1))


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt(3)."""
THRESHOLD = 1 << 30
"""Number of bytes above the size of any activation."""


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning them to the system, for the whole process.

    Activations are larger than glibc's threshold for mapped memory. A new mapping costs a page fault for every 4 KiB of
    every activation in every step. Without this function, TinySSD trains about half as fast on a CPU. The function does
    nothing with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, THRESHOLD)


def return_freed_memory() -> None:
    """Make glibc return the memory that this process has freed to the system. Other C libraries are left alone."""
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
