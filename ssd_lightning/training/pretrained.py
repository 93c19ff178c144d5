"""Loading a trained detector of this project, of torchvision, or in the amdegroot layout into a model."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import SSD300_VGG16_Weights

from ssd_lightning.data.download import Archive, DownloadError, download, only_one_process_in
from ssd_lightning.data.formats.voc import VOC_CLASSES
from ssd_lightning.detector.backbones.normalization import CAFFE_MEAN, CAFFE_STD, Normalization
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.presets import PUBLISHED, default_boxes_of
from ssd_lightning.detector.weights import (
    CONFIG_KEY,
    MODEL_PREFIX,
    read_file,
    require_finite,
    require_same_kind,
    state_dict,
)
from ssd_lightning.require import in_short, one_line, require_names
from ssd_lightning.run_folder import checkpoint_in

PRESETS = {
    "torchvision SSD300": "ssd300_torchvision",
    "torchvision SSDLite320": "ssdlite320_torchvision",
    "amdegroot": "ssd300_amdegroot",
}
"""Option of ``model`` with the architecture and the default boxes of each layout."""

COCO_CATEGORIES = tuple(SSD300_VGG16_Weights.COCO_V1.meta["categories"][1:])
"""Names by COCO's category ids from 1. The ids without a category are called N/A."""

COCO_CLASSES = tuple(name for name in COCO_CATEGORIES if name != "N/A")
"""The 80 classes of COCO, by id."""

SCALING = "backbone.normalize."
"""Prefix of the mean and std of pixels in a state dict."""

TORCHVISION_MEAN = (122.99925, 116.9991, 103.9992)
"""Mean of pixels in torchvision's SSD300. It is Caffe's mean, rounded to five digits as a share of 255."""

SAME_CLASS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""COCO's names of the VOC classes that have another name there."""


class Foreign(NamedTuple):
    """Weights of a file under the names of this project."""

    layout: str
    state: dict[str, Tensor]
    classes: list[str] | None
    """Classes of the class head without background, if the file or its layout defines them."""
    mean: Sequence[float] | None
    std: Sequence[float] | None
    antialias: bool | None
    """Way of resizing in the training of the weights; None if unknown."""


class LoadReport(NamedTuple):
    """Report of the weights that were loaded from a file. ``str(report)`` is a text for people."""

    source: str
    layout: str
    loaded: list[str]
    """Names of the tensors that were loaded."""
    skipped: list[str]
    """Names of the file's tensors that were not loaded, with the reason."""
    missing: list[str]
    """Names of the model's tensors that the file lacks, and which keep their initial values."""
    classes: list[str] | None
    """Classes that were loaded by name; ``None`` if the class head was loaded unchanged."""
    new_classes: list[str]
    """Classes of the model that the file lacks."""
    preset: str | None
    """Option of ``model`` with the file's default boxes, if the model has other default boxes."""

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.layout}): {len(self.loaded)} tensors loaded"]
        if self.classes is not None:
            lines.append(f"  classes by name: {', '.join(self.classes) or 'none'}")
            if self.new_classes:
                lines.append(f"  classes to be learned: {', '.join(self.new_classes)}")
        if self.preset is not None:
            lines.append(f"  made for other default boxes, so its offsets do not fit: model={self.preset} has them")
        for title, names in (("skipped", self.skipped), ("not in the file", self.missing)):
            if names:
                lines.append(f"  {title}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if names[6:] else ''}")
        return "\n".join(lines)


def weights_file(given: Any, key: str) -> Path:
    """Return the file of weights that were named by a file, by a run folder, or by the name of a published detector.

    A published detector is downloaded once, to the folder where torchvision has it.

    Args:
        given: a file; a run folder, whose best checkpoint is returned; or a name of
            :data:`~ssd_lightning.detector.presets.PUBLISHED`.
        key: the argument that named the weights, for messages.

    Raises:
        ValueError: if the value is no text, or there is nothing of this name.
        DownloadError: if the file cannot be downloaded; the message says which file to put where.
    """
    if not isinstance(given, str | Path) or not str(given):
        raise ValueError(f"{key}: expected a file, a run folder or one of {', '.join(PUBLISHED)}, got {given!r}")
    published = PUBLISHED.get(str(given))
    if published is not None:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        archive = Archive(published.file_name, (published.url,), f"sha256:{published.sha256}")
        with only_one_process_in(folder):
            try:
                return download(archive, folder)
            except DownloadError as error:
                raise DownloadError(f"{key}: {error}") from error
    path = Path(given).expanduser()
    if path.is_dir():
        return checkpoint_in(path, key)
    if not path.exists():
        # The longest common part, since a ratio falls with the length of a name.
        nearest = sorted(
            PUBLISHED, key=lambda name: -difflib.SequenceMatcher(None, str(given), name).find_longest_match().size
        )
        raise ValueError(
            f"{key}: expected a file, a run folder or one of {', '.join(nearest)}, got {given}, which does not exist"
        )
    return path


def load_pretrained(
    model: SSD, path: Path | str, classes: Sequence[str] | None = None, file_classes: Sequence[str] | None = None
) -> LoadReport:
    """Load the weights of a detector into ``model``, with the scaling of pixels that belongs to these weights.

    The way of resizing also belongs to the weights, and becomes ``model.antialias``.

    If the classes of both sides are known, the class head is loaded class by class, and COCO's "airplane" is VOC's
    "aeroplane". A class head of unknown other classes is skipped, as are tensors of another shape. No class named in
    the file is built, so the file need not be trusted.

    Args:
        model: the model, which is changed in place.
        path: a checkpoint of ``ssd-train``, or its run folder; a state dict of torchvision's ``ssd300_vgg16`` or
            ``ssdlite320_mobilenet_v3_large``, or its name; or a state dict in the layout of amdegroot/ssd.pytorch.
        classes: classes of ``model`` without background.
        file_classes: classes of the file without background, if they are not VOC's or COCO's.

    Raises:
        ValueError: with the file, if the file cannot be read, has another layout, or is of another architecture.
    """
    path = weights_file(path, "pretrained")
    content = read_file(path, "pretrained")
    foreign = _under_our_names(content, model, path)
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    require_same_kind({n: value for n, value in foreign.state.items() if n in own}, own, path, "pretrained")
    names = list(file_classes) if file_classes is not None else foreign.classes
    known = list(classes) if classes is not None else None
    state, skipped = {}, []
    by_name: list[str] | None = None
    for name, value in foreign.state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in own:
            skipped.append(f"{name} (not in the model)")
        elif level := re.fullmatch(r"head\.classification\.(\d+)\.(?:\d\.)?(?:weight|bias)", name):
            rows = _rows_by_class(value, own[name], model.boxes_per_cell[int(level[1])], names, known)
            if rows is None:
                skipped.append(f"{name} (other classes)")
                by_name = []
            else:
                state[name] = rows
                if names is not None and known is not None and names != known:
                    by_name = [c for c in known if _find(c, names) is not None]
        elif value.shape != own[name].shape:
            skipped.append(f"{name} ({_shape(value)}, not {_shape(own[name])})")
        else:
            state[name] = value
    if not any(name.startswith("backbone.") and not name.startswith(SCALING) for name in state):
        raise ValueError(
            f"pretrained: expected a backbone that fits the model, got {path} ({foreign.layout}): "
            f"{one_line(', '.join(skipped[:3]))}"
        )
    require_finite(state, path, "pretrained")
    model.load_state_dict(state, strict=False)
    if foreign.mean is not None and foreign.std is not None:
        for module in model.backbone.modules():
            if isinstance(module, Normalization):
                module.load_state_dict(Normalization(foreign.mean, foreign.std).state_dict())
    if foreign.antialias is not None:
        model.antialias = foreign.antialias
    missing = [name for name in own if name not in state and not name.startswith(SCALING)]
    new = [c for c in known or [] if by_name is not None and c not in by_name]
    preset = PRESETS.get(foreign.layout)
    if preset is not None and _has(model, default_boxes_of(preset)):
        preset = None
    return LoadReport(str(path), foreign.layout, list(state), skipped, missing, by_name, new, preset)


def _under_our_names(content: dict[str, Any], model: SSD, path: Path | str) -> Foreign:
    config = content.get(CONFIG_KEY)
    state = state_dict(content, path, "pretrained")
    if isinstance(config, dict):
        own = {n.removeprefix(MODEL_PREFIX): v for n, v in state.items() if n.startswith(MODEL_PREFIX)}
        # Checkpoints without this key are of versions that always resized with anti-aliasing.
        stored = config.get("model")
        antialias = stored.get("antialias", True) if isinstance(stored, dict) else None
        if isinstance(stored, dict) and not isinstance(antialias, bool):
            raise ValueError(f"pretrained: expected antialias to be true or false, got {in_short(antialias)} in {path}")
        names = list(names_in(config["classes"], path, "pretrained")) if "classes" in config else None
        return Foreign("ssd_lightning", own, names, None, None, antialias)
    if "head.classification_head.module_list.0.weight" in state:
        return _torchvision(state, model, path, "torchvision SSD300", TORCHVISION_MEAN, CAFFE_STD)
    if "head.classification_head.module_list.0.1.weight" in state:
        return _torchvision(state, model, path, "torchvision SSDLite320", (127.5,) * 3, (127.5,) * 3)
    if "loc.0.weight" in state and "vgg.0.weight" in state:
        return _amdegroot(state, model, path)
    if "head.classification.0.weight" in state or "head.classification.0.1.weight" in state:
        return Foreign("ssd_lightning", state, None, None, None, None)
    raise ValueError(
        f"pretrained: expected a detector of ssd_lightning, of torchvision or in the amdegroot layout, got {path} with "
        f"{one_line(', '.join(list(state)[:3]))}, …. Try backbone.weights for the weights of a backbone alone."
    )


def _torchvision(
    state: dict[str, Tensor],
    model: SSD,
    path: Path | str,
    layout: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Foreign:
    renamed = {}
    if "backbone.scale_weight" in state:
        renamed["backbone.l2_norm.weight"] = state["backbone.scale_weight"]
    theirs = [n for n in state if n.startswith("backbone.") and n != "backbone.scale_weight"]
    renamed |= _in_order(state, theirs, model, path, layout)
    for name, value in state.items():
        for part, ours in (("classification_head", "classification"), ("regression_head", "localization")):
            if name.startswith(f"head.{part}.module_list."):
                renamed[name.replace(f"head.{part}.module_list.", f"head.{ours}.")] = value
    return Foreign(layout, renamed, _classes_of_head(renamed, COCO_CATEGORIES), mean, std, antialias=False)


def _amdegroot(state: dict[str, Tensor], model: SSD, path: Path | str) -> Foreign:
    renamed = {}
    if "L2Norm.weight" in state:
        renamed["backbone.l2_norm.weight"] = state["L2Norm.weight"]
    theirs = [n for part in ("vgg.", "extras.") for n in state if n.startswith(part)]
    renamed |= _in_order(state, theirs, model, path, "amdegroot")
    for name, value in state.items():
        for part, ours in (("conf.", "head.classification."), ("loc.", "head.localization.")):
            if name.startswith(part):
                renamed[ours + name.removeprefix(part)] = value
    # Its pictures were resized by OpenCV, which does not average over pixels either.
    classes = _classes_of_head(renamed, VOC_CLASSES)
    return Foreign("amdegroot", renamed, classes, CAFFE_MEAN, CAFFE_STD, antialias=False)


def _classes_of_head(state: dict[str, Tensor], usual: Sequence[str]) -> list[str] | None:
    """Return the usual classes of a layout if the head has as many, by its outputs for a default box."""
    for last in ("0.weight", "0.1.weight"):
        logits, offsets = (state.get(f"head.{part}.{last}") for part in ("classification", "localization"))
        if logits is not None and offsets is not None and logits.ndim and offsets.ndim:
            return list(usual) if len(logits) * 4 == len(offsets) * (len(usual) + 1) else None
    return None


def names_in(classes: Any, path: Path | str, key: str) -> tuple[str, ...]:
    """Return the class names that a checkpoint holds.

    Args:
        classes: anything that a file can hold.
        path: the file.
        key: the argument that named the file.

    Raises:
        ValueError: with the file, if it is no list of names.
    """
    try:
        return require_names("classes", classes)
    except ValueError as error:
        raise ValueError(f"{key}: expected a file of ssd-train, got {path}: {error}") from error


def _in_order(
    state: dict[str, Tensor], theirs: list[str], model: SSD, path: Path | str, layout: str
) -> dict[str, Tensor]:
    """Rename the tensors of backbone and extra layers by their order, which is that of the forward pass."""
    own = [
        name
        for name in model.state_dict()
        if name.startswith(("backbone.", "extra_layers.")) and not re.search(r"\.normalize\.|\.l2_norm\.", name)
    ]
    theirs, own = ([n for n in names if not n.endswith("num_batches_tracked")] for names in (theirs, own))
    tensors = model.state_dict()
    differing = [
        f"{name} of shape {_shape(state[name])}, but {ours} of the model has {_shape(tensors[ours])}"
        for ours, name in zip(own, theirs, strict=False)
        if tensors[ours].shape != state[name].shape
    ]
    if len(theirs) != len(own):
        differing.insert(0, f"{len(theirs)} tensors before the head, but the model has {len(own)}")
    if differing:
        raise ValueError(
            f"pretrained: expected the architecture of the model, got {path} ({layout}) with {one_line(differing[0])}. "
            f"Try model={PRESETS[layout]}."
        )
    return {ours: state[name] for ours, name in zip(own, theirs, strict=True)}


def _rows_by_class(
    theirs: Tensor, ours: Tensor, per_cell: int, names: list[str] | None, known: list[str] | None
) -> Tensor | None:
    """Return the rows of our class head with the file's values for the classes of the same name.

    The rows are ordered by default box, then by class with background first. The result is None if the rows of the
    file cannot be assigned to classes.
    """
    if theirs.ndim != ours.ndim or theirs.shape[1:] != ours.shape[1:] or not len(theirs) or len(theirs) % per_cell:
        return None
    theirs, result = theirs.unflatten(0, (per_cell, -1)), ours.clone().unflatten(0, (per_cell, -1))
    if names is None or known is None or len(names) + 1 != theirs.shape[1] or len(known) + 1 != result.shape[1]:
        return theirs.flatten(0, 1) if theirs.shape == result.shape else None
    result[:, 0] = theirs[:, 0]
    for row, name in enumerate(known, 1):
        found = _find(name, names)
        if found is not None:
            result[:, row] = theirs[:, found + 1]
    return result.flatten(0, 1)


def _has(model: SSD, default_boxes: DefaultBoxes) -> bool:
    if len(model.grids) != default_boxes.levels:
        return False
    expected = default_boxes(model.grids, model.image_size).to(model.default_boxes)
    return expected.shape == model.default_boxes.shape and torch.allclose(expected, model.default_boxes, atol=1e-5)


def _find(name: str, names: list[str]) -> int | None:
    others = [name, SAME_CLASS.get(name), *(voc for voc, coco in SAME_CLASS.items() if coco == name)]
    return next((names.index(other) for other in others if other in names), None)


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "one number"
