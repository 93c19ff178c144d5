"""When the values of a tensor may be looked at."""

import torch
from torch import Tensor


def can_read(tensor: Tensor) -> bool:
    """Whether counting or reading its values costs nothing: an accelerator would wait, a compiled graph would break.

    Few of the thousands of default boxes count in a loss. Where they can be counted the others are left out, which
    saves most of the work; elsewhere they are computed and masked. Both give the same numbers.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
