"""The detectors of ``conf/model`` by name, for notebooks and your own code, and published weights for them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # Commands import this module before torch, to answer at once.
    from omegaconf import DictConfig

    from ssd_lightning.detector.default_boxes import DefaultBoxes
    from ssd_lightning.detector.model import SSD


PACKAGE = Path(__file__).parents[1]
CONFIG_FOLDER = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""Folder of the config groups: inside the package in a wheel, beside the package in a checkout."""


class Published(NamedTuple):
    """Weights of a whole detector, trained on COCO by torchvision."""

    model: str
    """The option of ``model`` that has their architecture and default boxes."""
    url: str
    sha256: str
    """First digits of the hash, as torchvision publishes them."""
    postprocess: dict[str, Any]
    """Settings of post-processing that torchvision uses, where they differ from the defaults here."""

    @property
    def file_name(self) -> str:
        """The name that torchvision gives to the file on disk."""
        return self.url.rpartition("/")[2]


PUBLISHED = {
    "ssd300_vgg16_coco": Published(
        "ssd300_torchvision", "https://download.pytorch.org/models/ssd300_vgg16_coco-b556d3b4.pth", "b556d3b4", {}
    ),
    "ssdlite320_mobilenet_v3_large_coco": Published(
        "ssdlite320_torchvision",
        "https://download.pytorch.org/models/ssdlite320_mobilenet_v3_large_coco-a79551df.pth",
        "a79551df",
        {"score_threshold": 0.001, "nms_threshold": 0.55, "candidates_per_class": 300, "max_detections": 300},
    ),
}
"""Published detectors by the name that ``pretrained`` and ``checkpoint`` accept."""


def model_names() -> list[str]:
    """Return the names of the detectors in ``conf/model``."""
    return sorted(path.stem for path in (CONFIG_FOLDER / "model").glob("*.yaml") if path.stem != "ssd")


def build_model(name: str, num_classes: int, *choices: str) -> "SSD":
    """Build the network that ``ssd-train model=<name>`` trains.

    Args:
        name: one of :func:`model_names`.
        num_classes: number of object classes, without background.
        choices: overrides as on the command line, such as ``"box_scales=coco"``.
    """
    from hydra.utils import instantiate

    return instantiate(_compose(name, f"+model.num_classes={num_classes}", *choices).model, _convert_="all")


def default_boxes_of(name: str) -> "DefaultBoxes":
    """Build the default boxes of a detector (one of :func:`model_names`) without its network."""
    from hydra.utils import instantiate

    return instantiate(_compose(name).model.default_boxes, _convert_="all")


def _compose(name: str, *choices: str) -> "DictConfig":
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if name not in model_names():
        raise ValueError(f"name: expected one of {', '.join(model_names())}, got {name!r}")
    # Hydra allows one job per process, and a command is one: it is set aside here.
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            return compose("train", [f"model={name}", *choices])
    finally:
        GlobalHydra.instance().hydra = running
