"""Things in the generated banana pictures that are no bananas."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter

from ssd_lightning.data.bananas.colours import Colour, any_colour, hsv, ink, palette, pixels, smooth_noise, yellow
from ssd_lightning.data.bananas.solids import (
    SUPERSAMPLING,
    Light,
    Solid,
    padded,
    random_tilt,
    render_solid,
    shrink,
    swept_curve,
    turn_in_picture,
)


def _swept_thing(
    rng: np.random.Generator,
    light: Light,
    size: float,
    colour: Colour,
    turning: float,
    radius: Float[np.ndarray, " along"],
    depth_angle: float = 0.6,
) -> Image.Image:
    """Draw a round body of about ``size`` pixels whose spine turns by ``turning`` radians."""
    spine, heading = swept_curve(np.full(len(radius), turning / len(radius)))
    around = int(np.clip(10 * size * radius.max(), 48, 512))
    solid = Solid(spine, heading, radius, np.ones((len(radius), around)))
    mottle = rng.uniform(0, 0.12) * smooth_noise(rng, (len(radius), around), (12, 6))
    extent = np.ptp(spine, axis=0) + 2 * radius.max()
    pose = turn_in_picture(rng.uniform(0, 2 * np.pi)) @ random_tilt(rng, depth_angle, depth_angle)
    return render_solid(solid, colour * (1 + mottle), pose, size / extent.max(), light, rng.uniform(0, 0.5))


def ball(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw an orange, an apple, a tomato or a ball."""
    fruit = hsv(rng.choice([0.0, 0.03, 0.08, 0.1, 0.25, 0.97]), rng.uniform(0.7, 1), rng.uniform(0.5, 1))
    position = np.linspace(-1, 1, int(2.5 * size))
    radius = 0.5 * np.sqrt(1 - position**2) * rng.uniform(0.9, 1.1)
    return _swept_thing(rng, light, 0.75 * size, fruit if rng.random() < 0.7 else any_colour(rng), 0.0, radius)


def lemon(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a lemon or another yellow to orange thing with two blunt ends, such as a mango, a potato or a pear."""
    position = np.linspace(-1, 1, int(3 * size))
    body = np.sqrt(np.clip(1 - (position / 0.9) ** 2, 0, 1))
    nipples = 0.25 * np.sqrt(np.clip(1 - position**2, 0, 1)) * rng.uniform(0, 1)
    lopsided = 1 + rng.uniform(-0.3, 0.3) * position
    radius = rng.uniform(0.25, 0.38) * np.maximum(body, nipples) * lopsided
    return _swept_thing(rng, light, 0.75 * size, yellow(rng), rng.normal(0, 0.1), radius)


def crescent(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw the shape of a banana in a colour that no banana has, so that shape alone does not identify a banana."""
    position = np.linspace(-1, 1, int(3 * size))
    colour = hsv(rng.uniform(0.42, 1.02), rng.beta(1, 1), rng.uniform(0.1, 1.0))  # Cyan to red, or grey.
    radius = rng.uniform(0.06, 0.12) * (1 - np.abs(position) ** rng.uniform(1.5, 5)) + 0.01
    return _swept_thing(rng, light, 1.1 * size, colour, rng.uniform(0.4, 2.5), radius)


def rod(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a stick, pencil, carrot, cable or finger: straight or bent, often yellow, brown or skin-coloured."""
    skin = hsv(rng.uniform(0.03, 0.08), rng.uniform(0.25, 0.6), rng.uniform(0.4, 1))
    colour = (yellow(rng), skin, any_colour(rng))[rng.integers(3)]
    radius = np.full(int(3 * size), rng.uniform(0.012, 0.04)) * np.linspace(1, rng.uniform(0.3, 1), int(3 * size))
    return _swept_thing(rng, light, 1.2 * size, colour, rng.choice([0.0, rng.normal(0, 1)]), radius)


def ring(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a ring, a handle or a rim: an arc of constant thickness, yellow in half of all cases."""
    colour = yellow(rng) if rng.random() < 0.5 else any_colour(rng)
    turning = rng.choice([2 * np.pi, rng.uniform(3.5, 6)])
    radius = np.full(int(6 * size), rng.uniform(0.01, 0.035))
    return _swept_thing(rng, light, size, colour, turning, radius, depth_angle=1.0)


def _cutout(
    rng: np.random.Generator, light: Light, size: float, parts: list[tuple[Float[np.ndarray, "corners 2"], Colour]]
) -> Image.Image:
    """Draw filled polygons, later ones on top, at a random angle and with a longer side of ``size`` pixels.

    Side light, a bevel at the rim and mottling give the flat shape depth.
    """
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    turned = [points @ rotation for points, _ in parts]
    everything = np.concatenate(turned)
    low, extent = everything.min(axis=0), np.ptp(everything, axis=0)
    scale = SUPERSAMPLING * size / extent.max()
    width, height = (padded(side) for side in extent * scale)
    enlarged = Image.new("RGBA", (width + SUPERSAMPLING, height + SUPERSAMPLING))
    draw = ImageDraw.Draw(enlarged)
    for points, (_, colour) in zip(turned, parts, strict=True):
        draw.polygon(((points - low) * scale + SUPERSAMPLING).ravel().tolist(), fill=ink(colour))
    relief = np.asarray(enlarged.getchannel("A").filter(ImageFilter.GaussianBlur(rng.uniform(2, 8)))) / 255.0
    slope_y, slope_x = np.gradient(relief)
    bevel = -rng.uniform(0, 5) * (slope_x * light.direction[0] + slope_y * light.direction[1])
    mottle = rng.uniform(0.02, 0.15) * smooth_noise(rng, relief.shape, (8, 8))
    gradient = np.linspace(-1, 1, relief.shape[0])[:, None] * light.direction[1] * rng.uniform(0, 0.25)
    flat = np.moveaxis(np.asarray(enlarged.convert("RGB"), np.float32), -1, 0) / 255
    lit = Image.fromarray(pixels(flat * (1 + bevel + mottle + gradient)))
    lit.putalpha(enlarged.getchannel("A"))
    return shrink(lit)


def _ellipse(
    width: float, height: float, centre: tuple[float, float] = (0.0, 0.0), turn: float = 0.0
) -> Float[np.ndarray, "corners 2"]:
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    x, y = width / 2 * np.cos(angles), height / 2 * np.sin(angles)
    points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=-1)
    return points + np.array(centre)


def _rectangle(left: float, top: float, right: float, bottom: float) -> Float[np.ndarray, "corners 2"]:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)


def box(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a book, carton, screen or ruler: a bright face, a dark side and some print."""
    colour = yellow(rng) if rng.random() < 0.4 else any_colour(rng)
    length, side = rng.choice([rng.uniform(1, 2), rng.uniform(4, 10)]), rng.uniform(0, 0.25)
    face = _rectangle(0.0, 0.0, length, 1.0)
    parts = [(np.array([(0, 1), (length, 1), (length - side, 1 + side), (-side, 1 + side)]), colour * 0.55)]
    parts += [(face, colour)]
    print_colour = any_colour(rng) * 0.6
    for line in np.linspace(0.15, 0.85, rng.integers(0, 6)):
        start, end = np.sort(rng.uniform(0.05, 0.95, 2)) * length
        parts += [(_rectangle(start, line - 0.04, end, line + 0.04), print_colour)]
    return _cutout(rng, light, size, parts)


def leaf(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a leaf with a rib, green or autumn red; a bent yellow leaf could pass for a banana."""
    width = rng.uniform(0.3, 0.6)
    position = np.linspace(0, np.pi, 20)
    bow = rng.uniform(-0.3, 0.3) * np.sin(position)
    upper, lower = bow + width / 2 * np.sin(position) ** 1.3, bow - width / 2 * np.sin(position) ** 1.3
    along = np.linspace(-0.5, 0.5, 20)
    blade = np.stack([np.append(along, along[::-1]), np.append(upper, lower[::-1])], axis=-1)
    rib = np.stack([np.append(along, along[::-1]), np.append(bow + 0.012, bow[::-1] - 0.012)], axis=-1)
    hue = rng.choice([rng.uniform(0.22, 0.4), rng.uniform(0.0, 0.06)])
    colour = hsv(hue, rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.8))
    return _cutout(rng, light, size, [(blade, colour), (rib, colour * 0.7)])


def flower(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a flower: petals around a centre, mostly yellow."""
    colour = yellow(rng) if rng.random() < 0.7 else any_colour(rng)
    petals, slender = rng.integers(5, 14), rng.uniform(0.15, 0.35)
    parts = [
        (_ellipse(0.5, slender, (0.3 * np.cos(turn), 0.3 * np.sin(turn)), turn), colour * rng.uniform(0.75, 1.1))
        for turn in np.linspace(0, 2 * np.pi, petals, endpoint=False)
    ]
    return _cutout(rng, light, 0.8 * size, [*parts, (_ellipse(0.3, 0.3), any_colour(rng) * 0.6)])


def plate(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a plate, bowl, cup or wheel at an angle, as nested ellipses."""
    colours, tilt = palette(rng, 4), rng.uniform(0.4, 1)
    discs = [
        (_ellipse(width, width * tilt, (0.0, 0.08 * (1 - width))), colour)
        for width, colour in zip((1.0, 0.94, 0.7, 0.66), colours, strict=True)
    ]
    return _cutout(rng, light, 1.3 * size, discs)


def blob(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a stone, crisp, puddle or star: any closed outline, one in five in a colour of bananas."""
    corners = rng.integers(3, 40)
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    harmonics = np.arange(2, 6)
    waves = np.cos(np.outer(angles, harmonics) + rng.uniform(0, 2 * np.pi, 4)) @ (rng.normal(0, 0.4, 4) / harmonics)
    radii = np.clip(1 + waves, 0.2, None)
    outline = np.stack([radii * np.cos(angles), radii * np.sin(angles) * rng.uniform(0.6, 1)], axis=-1)
    return _cutout(rng, light, size, [(outline, yellow(rng) if rng.random() < 0.2 else any_colour(rng))])


def print_strokes(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw strokes that resemble a line of writing."""
    colour, thickness = any_colour(rng) * rng.choice([0.3, 1.0]), rng.uniform(0.1, 0.3)
    parts = []
    for letter in range(rng.integers(2, 8)):
        left = 1.1 * letter
        for _ in range(rng.integers(2, 4)):
            if rng.random() < 0.5:
                x = left + rng.uniform(0, 0.7)
                parts += [(_rectangle(x, 0.0, x + thickness, 1.4), colour)]
            else:
                y = rng.choice([0.0, 0.6, 1.2])
                parts += [(_rectangle(left, y, left + 0.8, y + thickness), colour)]
    return _cutout(rng, light, size, parts)


DISTRACTORS: tuple[Callable[[np.random.Generator, Light, float], Image.Image], ...] = (
    *(ball, lemon, crescent, rod, ring),
    *(box, leaf, flower, plate, blob, print_strokes),
)


def draw_distractor(rng: np.random.Generator, light: Light) -> Image.Image:
    """Draw a random thing that is not a banana (RGBA), about 20 … 110 pixels long."""
    return DISTRACTORS[rng.integers(len(DISTRACTORS))](rng, light, rng.uniform(20, 90))
