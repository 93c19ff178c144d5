"""Settings for exporting in tests, and an exported file that tests share."""

from pathlib import Path

import jaxtyping
import pytest
import torch
from run_folder import Trained

from ssd_lightning.deploy.export import export_onnx
from ssd_lightning.training.checkpoint import load_detector


@pytest.fixture(autouse=True, scope="session")
def trace_without_shape_checks():
    """Turn the checks of shapes off while torch traces a network: they would fix the number of pictures."""

    def unchecked(export):
        def run(*arguments, **settings):
            jaxtyping.config.update("jaxtyping_disable", True)
            try:
                return export(*arguments, **settings)
            finally:
                jaxtyping.config.update("jaxtyping_disable", False)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for module in (torch.onnx, torch.export):
            patch.setattr(module, "export", unchecked(module.export))
        yield


@pytest.fixture(scope="session")
def exported_run(trained: Trained, made_once) -> Path:
    """The exported file of the run that tests share."""
    folder = made_once("exported", lambda folder: export_onnx(load_detector(trained.best), folder / "detector.onnx"))
    return folder / "detector.onnx"
