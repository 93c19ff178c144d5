"""Settings for exporting in tests."""

import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def trace_without_shape_checks():
    """Turn the checks of shapes off while torch traces a network: they would fix the number of pictures."""
    export = torch.onnx.export

    def unchecked(*arguments, **settings):
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return export(*arguments, **settings)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", unchecked)
        yield
