"""Random changes of a picture's colours."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ssd_lightning.require import require_number

ColourChange = Callable[[UInt8[np.ndarray, "height width 3"], np.random.Generator], UInt8[np.ndarray, "height width 3"]]


class BrightnessContrast:
    """A random change of brightness, contrast and tint, applied as one table lookup per channel.

    Args:
        brightness: largest shift up or down, as a share of the full range.
        contrast: largest deviation from 1 of the contrast factor.
        tint: largest deviation from 1 of the factor that each channel gets independently.
    """

    def __init__(self, brightness: float = 0.15, contrast: float = 0.3, tint: float = 0.1) -> None:
        for name, value in (("brightness", brightness), ("contrast", contrast), ("tint", tint)):
            require_number(name, value, "[0, 1)")
        self.brightness, self.contrast, self.tint = brightness, contrast, tint

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return a changed copy of the picture."""
        shift = 255 * rng.uniform(-self.brightness, self.brightness)
        factor = rng.uniform(1 - self.contrast, 1 + self.contrast) * rng.uniform(1 - self.tint, 1 + self.tint, size=3)
        levels = np.arange(256)[:, None]
        table = np.clip((levels - 127.5) * factor + 127.5 + shift, 0, 255).astype(np.uint8)
        return np.stack([table[:, channel][image[..., channel]] for channel in range(3)], axis=-1)


GREY = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in luma (ITU-R BT.601), as in video and JPEG."""


class PhotometricDistortion:
    """The photometric distortion of the paper, applied as one matrix on red, green and blue.

    Ranges and probabilities come from the authors' prototxt. Brightness is added and contrast is a factor about black,
    as in their code. Saturation and hue differ. The authors scale and shift the channels of HSV, while this class
    blends with grey and rotates about the grey axis. Both operations are linear and keep grey unchanged. All four
    changes therefore form one matrix, and only its result is rounded and clipped to 0 … 255. The order of contrast,
    saturation and hue, which the authors' code draws at random, makes no difference here. For angles up to 18 degrees
    the rotation shifts the hue of HSV by its angle to within 3 degrees. It keeps the mean of red, green and blue, where
    HSV keeps their maximum.

    Args:
        probability: probability of each of the four changes.
        brightness: largest shift up or down, in levels of 255.
        contrast: largest deviation from 1 of the contrast factor.
        saturation: largest deviation from 1 of the factor on the difference from grey.
        hue: largest rotation either way, in degrees. (The authors' 18 counts OpenCV's steps of two degrees. Ports of
            their code, such as torchvision's, read it as degrees.)
        shuffled_channels: probability of permuting the channels. The authors' prototxt sets it to 0.
    """

    def __init__(
        self,
        probability: float = 0.5,
        brightness: float = 32.0,
        contrast: float = 0.5,
        saturation: float = 0.5,
        hue: float = 18.0,
        shuffled_channels: float = 0.0,
    ) -> None:
        for name, value, most in (
            ("probability", probability, 1),
            ("brightness", brightness, 255),
            ("contrast", contrast, 1),
            ("saturation", saturation, 1),
            ("hue", hue, 180),
            ("shuffled_channels", shuffled_channels, 1),
        ):
            require_number(name, value, f"[0, {most}]")
        self.probability = probability
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.shuffled_channels = shuffled_channels

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the changed picture, or the picture itself if no change is drawn."""
        changed = rng.random(4) < self.probability
        if changed.any():
            most = np.array([self.brightness, self.contrast, self.saturation, self.hue])
            shift, contrast, saturation, hue = rng.uniform(-most, most) * changed
            matrix = (1 + contrast) * hue_matrix(hue) @ saturation_matrix(1 + saturation)
            image = apply_matrix(image, matrix, (1 + contrast) * shift)
        if rng.random() < self.shuffled_channels:
            image = image[..., rng.permutation(3)]
        return image


def saturation_matrix(factor: float) -> Float[np.ndarray, "3 3"]:
    """Return the RGB matrix that multiplies the difference between a colour and its grey by ``factor``."""
    return factor * np.eye(3) + (1 - factor) * GREY


def hue_matrix(degrees: float) -> Float[np.ndarray, "3 3"]:
    """Return the RGB matrix that rotates about the grey axis, from red towards green (Rodrigues' formula)."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return cos * np.eye(3) + (1 - cos) / 3 + sin * across


def apply_matrix(
    image: UInt8[np.ndarray, "height width 3"], matrix: Float[np.ndarray, "3 3"], shift: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Apply the matrix to every pixel's RGB, add ``shift`` levels, round, and clip to 0 … 255."""
    rows = np.column_stack((matrix, np.full(3, shift)))
    return np.asarray(Image.fromarray(image).convert("RGB", tuple(rows.ravel().tolist())))
