"""Plain data of a config, for the parts that are built from it and for checkpoints."""

from typing import Any

from omegaconf import OmegaConf


def plain_values(node: Any) -> Any:
    """Return plain dictionaries, lists and numbers in place of a config node."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def without_weights(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model's config without the source of its initial weights, which a checkpoint replaces.

    Raises:
        ValueError: if the backbone is no part.
    """
    if not isinstance(model["backbone"], dict):
        raise ValueError(f"model.backbone: expected a part, got {model['backbone']}. Try backbone=<option>.")
    return {**model, "backbone": {key: value for key, value in model["backbone"].items() if key != "weights"}}
