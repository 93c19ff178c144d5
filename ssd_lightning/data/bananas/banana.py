"""The bananas of the generated pictures: shape, skin and box."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from PIL import Image

from ssd_lightning.data.bananas.colours import hsv, mixed, smooth_noise, smoothstep
from ssd_lightning.data.bananas.solids import Light, Solid, random_tilt, render_solid, swept_curve, turn_in_picture

# The ranges reproduce the boxes of the original, measured on the 100 boxes of bananas_val/label.csv. The quantiles at
# 5, 25, 50, 75 and 95 % of √(width·height) are 39, 44, 52, 57 and 61 px. Those of ln(width/height) are −0.30, −0.08,
# 0.02, 0.12 and 0.28, independent of the size. Sides in the training split are 32 … 83 px. The ranges are a pixel
# larger, because _extents overestimates a banana by a pixel.
SIZE_RANGE = (38.5, 64.5)
SIDE_RANGE = (34, 83)
LOG_ASPECT_MEAN, LOG_ASPECT_STD = 0.01, 0.17
FREE_TURN_SHARE = 0.1
"""Share of bananas with a random rotation instead of an aspect ratio of the original.

The boxes of the original are almost square, but photographs also show bananas that lie flat.
"""


class BananaShape(NamedTuple):
    """A banana of length 1 and the positions of its parts."""

    solid: Solid
    along: Float[np.ndarray, " along"]
    """Position along the banana: 0 at the cut of the stem, 1 at the tip."""
    ridges: Float[np.ndarray, " around"]
    """Closeness to an edge between facets: 1 on the edge, 0 in the middle of a facet."""
    stem: float
    """Position where the stem joins the body, on the scale of ``along``."""


def random_shape(rng: np.random.Generator) -> BananaShape:
    """Draw the shape of a banana: thick or thin, nearly straight or strongly bent, with three to five facets."""
    points, around = 240, 176  # Enough surface points for the largest banana, see render_solid.
    along = np.linspace(0, 1, points)
    stem = rng.uniform(0.07, 0.17)
    stem_radius = rng.uniform(0.24, 0.36)  # All radii here are relative to the thickest part.
    profile = [(0.0, 1.25 * stem_radius), (0.02, 1.25 * stem_radius), (0.06, stem_radius), (stem, 1.1 * stem_radius)]
    profile += [(stem + 0.09, 0.68), (stem + 0.22, 0.93), (0.55, 1.0), (0.74, 0.96), (0.86, 0.80)]
    profile += [(0.94, rng.uniform(0.45, 0.6)), (0.975, 0.28), (1.0, 0.20)]
    knots, thickness = zip(*profile, strict=True)
    window = np.hanning(21) / np.hanning(21).sum()  # Smooths the corners of the profile.
    radius = np.convolve(np.pad(np.interp(along, knots, thickness), 10, mode="edge"), window, mode="valid")

    bend = rng.uniform(0.25, 2.0)  # Radians from end to end of the body.
    turning = bend * (0.5 + np.sin(np.pi * along) * rng.uniform(0.5, 1.5))
    turning += rng.normal(0.2, 0.25) * np.exp(-(((along - stem) / 0.05) ** 2)) * 10
    spine, heading = swept_curve(turning / points * rng.choice([-1, 1]))

    facets = int(rng.integers(3, 6))
    phase = facets * np.linspace(0, 2 * np.pi, around, endpoint=False) + rng.uniform(0, 2 * np.pi)
    # A facet is flat at an amplitude of 1 / (facets² − 1) and concave above it. Facets vanish towards the tip.
    amplitude = rng.uniform(0.3, 1.0) / (facets**2 - 1) * smoothstep(along, 1.0, 0.8)
    outline = 1 + amplitude[:, None] * np.cos(phase)
    solid = Solid(spine, heading, radius * rng.uniform(0.08, 0.13), outline)
    ridges = np.exp((np.cos(phase) - 1) / 0.06)
    return BananaShape(solid, along.astype(np.float32), ridges.astype(np.float32), stem)


def random_skin(rng: np.random.Generator, shape: BananaShape) -> Float[np.ndarray, "3 along around"]:
    """Draw the surface colours: from green to brown spots, with a woody stem and a black tip."""
    along, size = shape.along[:, None], (len(shape.along), len(shape.ridges))
    ripeness = rng.choice([rng.uniform(0, 0.3), rng.uniform(0.3, 0.7), rng.uniform(0.7, 1)], p=[0.12, 0.55, 0.33])
    hue = np.interp(ripeness, [0, 0.25, 0.5, 1], [0.205, 0.165, 0.14, 0.12]) + rng.normal(0, 0.006)
    saturation = np.interp(ripeness, [0, 0.3, 1], [0.7, 0.72, 0.82]) + rng.normal(0, 0.08)
    body = hsv(hue, min(saturation, 1.0), rng.uniform(0.86, 1.0) - 0.2 * max(0.0, 0.3 - ripeness))
    green = hsv(rng.uniform(0.19, 0.23), rng.uniform(0.6, 0.8), rng.uniform(0.55, 0.75))
    brown = hsv(rng.uniform(0.06, 0.1), rng.uniform(0.5, 0.75), rng.uniform(0.2, 0.45))

    mottled = smooth_noise(rng, size, (10, 24))  # Elongated along the banana.
    unripe = rng.uniform(0.0, 1.2) * (1 - ripeness)
    ends = smoothstep(along, shape.stem + rng.uniform(0.1, 0.3), shape.stem) + 0.5 * smoothstep(along, 0.85, 1.0)
    skin = mixed(body, green, np.clip(unripe * ends * (1 + 0.3 * mottled), 0, 1))
    skin = mixed(skin, brown, shape.ridges[None, :] * rng.uniform(0, 0.35))
    overripe = max(0.0, ripeness - 0.6) * rng.uniform(0, 2.5)
    specks = smoothstep(smooth_noise(rng, size, (50, 30)), 2.0 - 1.2 * overripe, 2.3 - 1.2 * overripe)
    bruises = smoothstep(smooth_noise(rng, size, (14, 7)), 2.1 - 1.1 * overripe, 2.6 - 1.1 * overripe)
    skin = mixed(skin, brown, np.maximum(specks, 0.7 * bruises) * rng.uniform(0.4, 1.0))
    woody = green * (1 - ripeness) + brown * 1.5 * ripeness
    skin = mixed(skin, woody, smoothstep(along, shape.stem, shape.stem * 0.4) * rng.uniform(0.3, 1.0))
    skin = mixed(skin, brown * 0.7, smoothstep(along, 0.035, 0.01) * rng.uniform(0.4, 1.0))
    skin = mixed(skin, brown * 0.35, smoothstep(along, 0.95, 0.985) * rng.uniform(0.7, 1.0))
    return skin * (1 + rng.uniform(0.01, 0.05) * mottled)


def draw_banana(rng: np.random.Generator, light: Light) -> Image.Image:
    """Draw a banana (RGBA) with a size that occurs in the original data set."""
    shape = random_shape(rng)
    lying = random_tilt(rng, roll=0.9, pitch=0.6)
    turns = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    extents = _extents(shape.solid, lying, turns)
    log_aspects = np.log(extents[:, 0] / extents[:, 1])
    largest = np.log(SIDE_RANGE[1] / SIDE_RANGE[0])
    if rng.random() < FREE_TURN_SHARE:
        suitable = np.flatnonzero(np.abs(log_aspects) < largest)
    else:
        miss = np.abs(log_aspects - rng.normal(LOG_ASPECT_MEAN, LOG_ASPECT_STD))
        suitable = np.flatnonzero(miss <= max(miss.min(), 0.05))
    chosen = rng.choice(suitable)
    width, height = extents[chosen]
    scale = rng.uniform(*SIZE_RANGE) / np.sqrt(width * height)
    scale = np.clip(scale, SIDE_RANGE[0] / min(width, height), SIDE_RANGE[1] / max(width, height))
    pose = turn_in_picture(turns[chosen]) @ lying
    return render_solid(shape.solid, random_skin(rng, shape), pose, scale, light, rng.uniform(0.0, 0.45))


def _extents(
    solid: Solid, pose: Float[np.ndarray, "3 3"], turns: Float[np.ndarray, " turns"]
) -> Float[np.ndarray, "turns 2"]:
    """Estimate width and height of the body in the picture after a further rotation by each angle.

    The estimate treats the outline as a circle and the ends as balls, so it is about a pixel too large.
    """
    x, y = (solid.spine @ pose[:2, :2].T).T
    horizontal = np.outer(np.cos(turns), x) - np.outer(np.sin(turns), y)
    vertical = np.outer(np.sin(turns), x) + np.outer(np.cos(turns), y)
    return np.stack(
        [(c + solid.radius).max(axis=1) - (c - solid.radius).min(axis=1) for c in (horizontal, vertical)], axis=-1
    )


def covered_pixels(banana: Image.Image) -> Bool[np.ndarray, "height width"]:
    """Return a mask of the pixels (of an RGBA image) that the banana covers by more than half."""
    return np.asarray(banana.getchannel("A")) > 127


def tight_box(mask: Bool[np.ndarray, "height width"]) -> Int64[np.ndarray, "4"]:
    """Return the edges (xyxy) of the smallest box around the set pixels; at least one pixel must be set."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.int64)
