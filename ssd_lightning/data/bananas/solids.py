"""The renderer of all solid bodies in the generated banana pictures, and their light and shadows.

Objects are drawn at twice their size and reduced, which smooths their edges. In the coordinates of objects and light, x
points right, y down, and z towards the camera.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter

SUPERSAMPLING = 2
SHADE_TINT = (0.85, 1.0, 1.35)
"""Exponents of the shade per channel; they make dark sides warmer, as in photographs of fruit."""


class Light(NamedTuple):
    """The light of a picture, shared by all its objects."""

    direction: Float[np.ndarray, "3"]
    """Unit vector from the objects to the lamp."""
    ambient: float
    """Brightness of the side that faces away from the lamp, 0 … 1."""
    shadow: float
    """Darkness of cast shadows, 0 (none) … 1 (black)."""
    softness: float
    """Blur of cast shadows in pixels."""


class Solid(NamedTuple):
    """A body made by sweeping a closed outline along a plane curve, the spine, at right angles to it."""

    spine: Float[np.ndarray, "along 2"]
    heading: Float[np.ndarray, " along"]
    """Direction of the spine in radians."""
    radius: Float[np.ndarray, " along"]
    """Mean distance of the surface from the spine, in the unit of the spine."""
    outline: Float[np.ndarray, "along around"]
    """Distance from the spine relative to ``radius``, at equal angles around it."""


def random_light(rng: np.random.Generator) -> Light:
    """Draw a lamp anywhere in the half space of the camera, more often above than below."""
    azimuth, elevation = rng.normal(-np.pi / 2, 1.2), rng.uniform(0.4, 1.3)
    across = np.cos(elevation)
    direction = np.array([across * np.cos(azimuth), across * np.sin(azimuth), np.sin(elevation)])
    shadow = rng.uniform(0.15, 0.65) if rng.random() < 0.7 else 0.0
    return Light(direction, rng.uniform(0.4, 0.8), shadow, rng.uniform(1.0, 7.0))


def swept_curve(
    turning: Float[np.ndarray, " along"],
) -> tuple[Float[np.ndarray, "along 2"], Float[np.ndarray, " along"]]:
    """Return points and headings (radians) of a centred curve of length 1 that turns by ``turning`` at each point.

    The mean heading is to the right.
    """
    heading = np.cumsum(turning)
    heading = heading - heading.mean()
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=-1), axis=0) / len(turning)
    return points - points.mean(axis=0), heading


def turn_in_picture(angle: float) -> Float[np.ndarray, "3 3"]:
    """Return the rotation matrix about the line of sight, for an angle in radians."""
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def random_tilt(rng: np.random.Generator, roll: float, pitch: float) -> Float[np.ndarray, "3 3"]:
    """Draw a rotation: up to ± ``roll`` about the x axis, then up to ± ``pitch`` about the y axis, in radians."""
    roll, pitch = rng.uniform(-roll, roll), rng.uniform(-pitch, pitch)
    about_x = np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]])
    about_y = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
    return about_y @ about_x


def render_solid(
    solid: Solid,
    colours: Float[np.ndarray, "3 along around"],
    pose: Float[np.ndarray, "3 3"],
    pixels_per_unit: float,
    light: Light,
    gloss: float,
) -> Image.Image:
    """Render the body as an RGBA image that just contains it; ``gloss`` is the brightness of highlights, 0 … 1.

    Surface points are written into the enlarged image from the farthest to the nearest, so every pixel needs at least
    one point. About 3 points per pixel of length and 10 per pixel of radius are enough.
    """
    solid, colours = _with_closed_ends(solid, colours)
    scale = pixels_per_unit * SUPERSAMPLING
    phi = np.linspace(0, 2 * np.pi, solid.outline.shape[1], endpoint=False, dtype=np.float32)
    cos, sin = np.cos(phi), np.sin(phi)
    # This is the spine's frame in the picture's axes. Each array below is a sum of (along) × (around) products.
    heading_cos, heading_sin = np.cos(solid.heading)[:, None], np.sin(solid.heading)[:, None]
    tangent = (heading_cos * pose[:, 0] + heading_sin * pose[:, 1]).astype(np.float32)
    normal = (heading_cos * pose[:, 1] - heading_sin * pose[:, 0]).astype(np.float32)
    binormal = pose[:, 2].astype(np.float32)

    outline = solid.outline.astype(np.float32)
    bulge = (np.roll(outline, -1, 1) - np.roll(outline, 1, 1)) / (2 * phi[1])
    out_normal, out_binormal = outline * cos + bulge * sin, outline * sin - bulge * cos
    step = np.linalg.norm(np.gradient(solid.spine, axis=0), axis=-1)
    slope = (np.gradient(solid.radius) / np.maximum(step, 1e-4)).astype(np.float32)[:, None] * outline
    length = np.sqrt(out_normal**2 + out_binormal**2 + slope**2)

    def facing(direction: Float[np.ndarray, "3"]) -> Float[np.ndarray, "along around"]:
        """Return the cosine between the surface normal and a unit vector."""
        direction = direction.astype(np.float32)
        across = out_normal * (normal @ direction)[:, None] + out_binormal * (binormal @ direction)
        return (across - slope * (tangent @ direction)[:, None]) / length

    def position(axis: int) -> Float[np.ndarray, "along around"]:
        """Return coordinates on one axis, in pixels of the enlarged image, relative to the origin of the spine."""
        centre = scale * (solid.spine @ pose[axis, :2])
        reach = (scale * solid.radius)[:, None].astype(np.float32) * outline
        return centre[:, None].astype(np.float32) + reach * (cos * normal[:, axis, None] + sin * binormal[axis])

    towards_camera = facing(np.array([0.0, 0.0, 1.0]))
    visible = towards_camera > 0
    x, y, depth = (position(axis)[visible] for axis in range(3))
    lit = np.clip(0.25 + 0.75 * facing(light.direction)[visible], 0, 1)
    half_way = light.direction + np.array([0.0, 0.0, 1.0])
    highlight = np.clip(facing(half_way / np.linalg.norm(half_way))[visible], 0, 1) ** 24
    rim = 0.8 + 0.2 * towards_camera[visible]  # Surfaces at a glancing angle get less light from the surroundings.
    shade = (light.ambient + (1.15 - light.ambient) * lit) * rim
    shaded = [
        np.clip(plane[visible] * shade**tint + gloss * highlight, 0, 1) * 255
        for plane, tint in zip(colours, SHADE_TINT, strict=True)
    ]

    left, top = np.floor(x.min()) - SUPERSAMPLING, np.floor(y.min()) - SUPERSAMPLING
    columns, rows = (x - left).astype(np.intp), (y - top).astype(np.intp)
    enlarged = np.zeros((padded(float(y.max() - top)), padded(float(x.max() - left)), 4), np.uint8)
    far_to_near = np.argsort(depth)
    rows, columns = rows[far_to_near], columns[far_to_near]
    for channel, values in enumerate(shaded):
        enlarged[rows, columns, channel] = values[far_to_near]
    enlarged[rows, columns, 3] = 255
    return shrink(Image.fromarray(enlarged))


def _with_closed_ends(
    solid: Solid, colours: Float[np.ndarray, "3 along around"]
) -> tuple[Solid, Float[np.ndarray, "3 rows around"]]:
    """Close both ends of the body with flat discs."""
    rings = 6
    rim_to_centre = np.linspace(1, 0, rings + 1)[1:]
    radius = np.concatenate([solid.radius[0] * rim_to_centre[::-1], solid.radius, solid.radius[-1] * rim_to_centre])
    pad = partial(np.pad, mode="edge")
    closed = Solid(
        pad(solid.spine, ((rings, rings), (0, 0))),
        pad(solid.heading, rings),
        radius,
        pad(solid.outline, ((rings, rings), (0, 0))),
    )
    return closed, pad(colours, ((0, 0), (rings, rings), (0, 0)))


def padded(last: float) -> int:
    """Return a size with a margin after the last pixel that is divisible by the supersampling factor."""
    return (int(last) // SUPERSAMPLING + 2) * SUPERSAMPLING


def shrink(enlarged: Image.Image) -> Image.Image:
    """Reduce a picture that was drawn ``SUPERSAMPLING`` times as large."""
    size = (enlarged.width // SUPERSAMPLING, enlarged.height // SUPERSAMPLING)
    return enlarged.resize(size, Image.Resampling.HAMMING)


def paste(canvas: Image.Image, thing: Image.Image, left: int, top: int, light: Light) -> Image.Image:
    """Return a copy of the canvas with the thing (RGBA) and its shadow on it."""
    alpha, softness = thing.getchannel("A"), light.softness
    margin = int(3 * softness)
    darkness = Image.new("L", (thing.width + 2 * margin, thing.height + 2 * margin))
    darkness.paste(alpha.point(lambda value: value * light.shadow), (margin, margin))
    darkness = darkness.filter(ImageFilter.GaussianBlur(softness))
    away = np.round(-(1 + 0.6 * softness) * light.direction[:2]).astype(int) - margin
    result = canvas.copy()
    result.paste((0, 0, 0), (left + int(away[0]), top + int(away[1])), darkness)
    result.paste(thing, (left, top), thing)
    return result
