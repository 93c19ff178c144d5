"""Checkpoints: reading them, and rebuilding a detector from one without running code from the file."""

import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import ssd_lightning
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.detector.presets import PUBLISHED, Published, build_model
from ssd_lightning.detector.weights import (
    CONFIG_KEY,
    MODEL_PREFIX,
    read_file,
    require_finite,
    require_plain_weights,
    require_same_kind,
)
from ssd_lightning.require import in_short, one_line, require_limits
from ssd_lightning.run_folder import NEVER_PROPOSED, PARTS
from ssd_lightning.training.pretrained import COCO_CLASSES, load_pretrained, names_in, weights_file


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Only plain data and tensors are read, so that a file cannot run code.

    Raises:
        ValueError: with the file, if the file is missing or no checkpoint.
    """
    return read_file(path, "checkpoint")


def load_detector(
    path: Path | str, postprocess: dict[str, Any] | None = None, trusted_packages: Collection[str] = ()
) -> Detector:
    """Rebuild the detector from a checkpoint of ``ssd-train``, or load one that torchvision published.

    No config file is needed.

    Args:
        path: the checkpoint; a run folder, whose best checkpoint is loaded; or a published detector by its name, such
            as ``ssd300_vgg16_coco``, which is downloaded once.
        postprocess: settings of :class:`~ssd_lightning.detector.postprocess.PostProcess` that replace those in the
            checkpoint.
        trusted_packages: top-level packages whose classes the checkpoint may name beside those of ``ssd_lightning``,
            such as ``["my_project"]`` for a backbone of one's own. Their code is imported and run.

    Raises:
        ValueError: with the file, if it is missing or no checkpoint of this project. Also if it names classes of
            packages that are not trusted, or if its weights do not fit its config.
    """
    path = weights_file(path, "checkpoint")
    published = next((entry for entry in PUBLISHED.values() if entry.file_name == path.name), None)
    if published is not None:
        return _published_detector(published, path, postprocess)
    detector = detector_in(read_checkpoint(path), path, postprocess, trusted_packages)
    require_finite(detector.model.state_dict(), path, "checkpoint")
    return detector


def _published_detector(published: Published, path: Path, postprocess: dict[str, Any] | None) -> Detector:
    """Load a detector that torchvision trained on COCO, with torchvision's settings of post-processing."""
    from hydra.utils import instantiate

    model = build_model(published.model, len(COCO_CLASSES))
    load_pretrained(model, path, COCO_CLASSES)
    settings = {"_target_": "ssd_lightning.PostProcess", **published.postprocess, **(postprocess or {})}
    return Detector(model.eval(), instantiate(settings, _convert_="all"), COCO_CLASSES)


def detector_in(
    content: dict[str, Any],
    path: Path | str,
    postprocess: dict[str, Any] | None = None,
    trusted_packages: Collection[str] = (),
) -> Detector:
    """Rebuild the detector from the content of a checkpoint, whatever its weights are; see :func:`load_detector`."""
    # Hydra is used outside the commands only in this file and in detector/presets.py.
    from hydra.utils import instantiate

    config = content.get(CONFIG_KEY)
    parts = ("model", "postprocess")
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in parts):
        raise ValueError(
            f"checkpoint: expected a file of ssd-train, got {path}, which lacks {CONFIG_KEY!r}, the config of the model"
        )
    classes = names_in(config.get("classes"), path, "checkpoint")
    model = rebuild(config["model"], path, trusted_packages)
    make_detections = rebuild(config["postprocess"], path, trusted_packages)
    for part, built, kind in (("model", model, SSD), ("postprocess", make_detections, PostProcess)):
        if not isinstance(built, kind):
            raise ValueError(
                f"checkpoint: expected a file of ssd-train, got {path}, whose {part} is a {type(built).__name__}"
            )
    if postprocess:
        # An error in the caller's settings must not be reported as an error in the file.
        make_detections = instantiate({**config["postprocess"], **postprocess}, _convert_="all")
    if len(classes) != model.num_classes:
        raise ValueError(f"checkpoint: expected the names of {model.num_classes} classes, got {len(classes)} in {path}")
    weights = {
        name.removeprefix(MODEL_PREFIX): value
        for name, value in weights_in(content, path).items()
        if name.startswith(MODEL_PREFIX)
    }
    refuse_other_weights(weights, model.state_dict(), path)
    model.load_state_dict(weights)
    return Detector(model.eval(), make_detections, classes)


def weights_in(content: dict[str, Any], path: Path | str) -> dict[str, Tensor]:
    """Return the weights of a checkpoint's content.

    Raises:
        ValueError: with the file, if there are none.
    """
    weights = content.get("state_dict")
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise ValueError(f"checkpoint: expected weights by name, got {path}, whose state_dict has none")
    require_plain_weights(weights, path, "checkpoint")
    return dict(weights)


def refuse_other_weights(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path | str) -> None:
    """Refuse weights whose names or shapes differ from those of a model.

    Args:
        weights: the weights in the file.
        own: the weights of the model.
        path: the file.

    Raises:
        ValueError: with the file and the first differences.
    """
    differing = [
        *(f"{name} is missing" for name in own if name not in weights),
        *(f"{name} is not in the model" for name in weights if name not in own),
        *(
            f"{name} has the shape {list(value.shape)}, and {list(own[name].shape)} in the model"
            for name, value in weights.items()
            if name in own and value.shape != own[name].shape
        ),
    ]
    if differing:
        raise ValueError(f"checkpoint: expected weights that fit the model, got {path}: {_names(differing)}")
    require_same_kind(weights, own, path, "checkpoint")


def refuse_other_model(stored: dict[str, Any], own: dict[str, Any], path: Path | str) -> None:
    """Refuse a checkpoint whose model config differs from that of the run.

    Raises:
        ValueError: with the file and the first differences.
    """
    differing = list(_differences(stored, own, "model"))
    if differing:
        raise ValueError(f"checkpoint: expected the model of this run, got {path}: {_names(differing)}")


def _differences(stored: Any, own: Any, key: str) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(own, dict):
        for name in {**stored, **own}:
            yield from _differences(stored.get(name, "unset"), own.get(name, "unset"), f"{key}.{name}")
    elif stored != own:
        yield f"{key} is {stored} there and {own} here"


def _names(names: list[str], most: int = 3) -> str:
    return one_line(", ".join(names[:most])) + (f" and {len(names) - most} more" if names[most:] else "")


def rebuild(config: dict[str, Any], path: Path | str, trusted_packages: Collection[str] = ()) -> Any:
    """Build an object from the plain config in a checkpoint.

    A config names the classes to build, and a file from a stranger could name anything. So only the listed parts of
    ``ssd_lightning`` and classes that are defined in a trusted package are built, never functions.

    Args:
        config: the config of the object.
        path: the checkpoint, for messages.
        trusted_packages: see :func:`load_detector`.

    Raises:
        ValueError: with the file, if the config names anything else, or arguments that a class refuses.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    require_package_names(trusted_packages)
    refuse_endless(config, path)
    _refuse_what_is_not_plain(config, path)
    refuse_old_targets(config, path)
    for target in _targets(config):
        _refuse_untrusted(target, path, trusted_packages)
    try:
        return instantiate(config, _convert_="all")
    except Exception as error:  # Hydra raises many types for odd flags, keys and values.
        reason = one_line(error.__cause__ or error if isinstance(error, InstantiationException) else error)
        raise ValueError(f"checkpoint: expected a config that can be built, got {path}: {reason}") from error


def rebuild_part(content: dict[str, Any], part: str, path: Path | str, trusted_packages: Collection[str] = ()) -> Any:
    """Build a part of the training beside the model, such as the ``matcher``, from the content of a checkpoint.

    Args:
        content: the content of the checkpoint.
        part: the key of the part in the config of the run.
        path: the checkpoint, for messages.
        trusted_packages: see :func:`load_detector`.

    Raises:
        ValueError: with the file, if the checkpoint has no config of the part.
    """
    stored = content.get(CONFIG_KEY)
    config = stored.get("config") if isinstance(stored, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get(part), dict):
        advice = ". Try data=<the option of a data set>." if part == "data" else ""
        raise ValueError(f"checkpoint: expected a file with the {part} of its training, got {path}{advice}")
    return rebuild(config[part], path, trusted_packages)


def refuse_old_targets(config: Any, path: Path | str) -> None:
    """Refuse a config that names classes as ``ssd_lightning`` before 0.2 did, such as ``ssd_lightning.model.SSD``.

    Args:
        config: nested dictionaries and lists.
        path: the file that holds the config, for the message.

    Raises:
        ValueError: with the file and the first such name.
    """
    refuse_endless(config, path)
    for target in _targets(config):
        if isinstance(target, str) and _is_of_former_version(target):
            raise ValueError(
                f"checkpoint: expected a file of ssd_lightning 0.2 or later, got {path}, which names {target}. "
                "Try training again, or the version that wrote the file."
            )


def refuse_endless(config: Any, path: Path | str) -> None:
    """Refuse a config that has too many levels or values, such as one that contains itself.

    Raises:
        ValueError: with the file.
    """
    try:
        require_limits(config)
    except ValueError as error:
        raise ValueError(f"checkpoint: expected a plain config, got {path}: {error}") from error


def _is_of_former_version(target: str) -> bool:
    is_own, name = target.startswith("ssd_lightning."), target.rpartition(".")[2]
    return is_own and name in dir(ssd_lightning) and _found(target) is None


def _targets(node: Any) -> Iterator[Any]:
    """Yield all that a config of dictionaries and lists names to be built."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _targets(child)


def _refuse_what_is_not_plain(node: Any, path: Path | str) -> None:
    """Refuse what :func:`_targets` does not look into, but Hydra does: other containers, and text with ``${…}``."""
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            _refuse_what_is_not_plain(child, path)
    elif not isinstance(node, str | int | float | None) or (isinstance(node, str) and "${" in node):
        raise ValueError(f"checkpoint: expected a plain config, got {in_short(node)} in {path}; refused")


def _refuse_untrusted(target: Any, path: Path | str, trusted_packages: Collection[str]) -> None:
    package = target.partition(".")[0] if isinstance(target, str) else ""
    is_name = isinstance(target, str) and all(map(str.isidentifier, target.split(".")))
    shown = one_line(target) if isinstance(target, str) else in_short(target)
    if package not in ("ssd_lightning", *trusted_packages):
        is_package = package.isidentifier() and package != target and package not in NEVER_PROPOSED
        advice = f". Try trusted_packages=[{package}] if you trust that code." if is_package else "; refused"
        raise ValueError(f"checkpoint: expected only classes of ssd_lightning, got {shown} in {path}{advice}")
    found = _found(target) if is_name else None
    # A package also gives access to what it has imported from elsewhere.
    if not isinstance(found, type) or found.__module__.partition(".")[0] != package:
        raise ValueError(f"checkpoint: expected a class of {package}, got {shown} in {path}; refused")
    if package == "ssd_lightning" and found.__name__ not in PARTS:
        raise ValueError(f"checkpoint: expected a part of a detector, got {shown} in {path}; refused")


def _found(target: str) -> Any:
    """Return what a dotted name stands for, importing its package; None if there is nothing."""
    from hydra.utils import get_object

    try:
        return get_object(target)
    except (ImportError, ValueError):
        return None


def require_package_names(trusted_packages: Any) -> None:
    """Refuse what is not a list of names of top-level packages, such as a single name.

    Raises:
        ValueError: with the value.
    """
    are_names = not isinstance(trusted_packages, str) and isinstance(trusted_packages, Collection)
    if not are_names or not all(isinstance(name, str) and name.isidentifier() for name in trusted_packages):
        raise ValueError(
            f"trusted_packages: expected a list of names of top-level packages, got {trusted_packages!r}. "
            "Try trusted_packages=[my_project]."
        )
    own = sorted(sys.stdlib_module_names.intersection(trusted_packages))
    if own:
        raise ValueError(
            f"trusted_packages: expected packages with classes of your own, got {own[0]}, a module of Python"
        )
