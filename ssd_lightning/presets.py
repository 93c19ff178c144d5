"""The detectors of ``conf/model`` by name, for notebooks and code of one's own."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands import this file before torch, to answer at once
    from ssd_lightning.model import SSD

PACKAGE = Path(__file__).parent
CONFIG_FOLDER = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""Inside the wheel; beside the package in a checkout."""


def model_names() -> list[str]:
    return sorted(path.stem for path in (CONFIG_FOLDER / "model").glob("*.yaml") if path.stem != "ssd")


def build_model(name: str, num_classes: int, *choices: str) -> "SSD":
    """What ``ssd-train model=<name>`` trains: ``build_model("ssd300_vgg16", 20, "box_scales=coco")``.

    Args:
        name: one of :func:`model_names`.
        num_classes: object classes, without background.
        choices: as on the command line: other options of the groups, other values.
    """
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    if name not in model_names():
        raise ValueError(f"name: expected one of {', '.join(model_names())}, got {name!r}")
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", [f"model={name}", f"+model.num_classes={num_classes}", *choices])
    return instantiate(config.model, _convert_="all")
