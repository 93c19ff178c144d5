"""Pictures of every kind that people have, made here pixel by pixel, so that each right answer is known."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd_lightning.data.pictures import PICTURE_SUFFIXES, PictureError, picture_size, read_header, read_picture

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
ORIENTATION = 0x0112
"""The EXIF tag that tells how a camera was held."""


@pytest.fixture
def pixels() -> np.ndarray:
    """Twenty rows of thirty pixels, all different."""
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


# --- colours ---


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.tiff", "a.ppm", "a.PNG"])
def test_lossless_files_come_back_exactly(tmp_path: Path, pixels: np.ndarray, name: str) -> None:
    Image.fromarray(pixels).save(tmp_path / name)
    image = read_picture(tmp_path / name)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)


def test_lossless_webp_comes_back_exactly(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.webp"), pixels)


def test_jpeg_comes_back_nearly(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None].repeat(32, axis=0).repeat(3, axis=2)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_picture(tmp_path / "a.jpg").astype(int) - smooth).max() <= 4


def test_grey_is_repeated_in_all_three_channels(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), pixels[..., :1].repeat(3, axis=2))


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255, 256, 0x1234, 0x80FF, 0xFFFF]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[0].tolist() == [[v] * 3 for v in (0, 0, 1, 0x12, 0x80, 0xFF)]


def test_black_and_white_of_one_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[0].tolist() == [list(WHITE), list(BLACK), list(WHITE)]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [([0, 1, 200, 255], [0, 1, 200, 255]), ([0, 255, 256, 0xFFFF], [0, 0, 1, 255]), ([0, 0, 0, 0], [0, 0, 0, 0])],
)
def test_whole_numbers_of_32_bits_have_the_range_that_holds_them(
    tmp_path: Path, levels: list[int], expected: list[int]
):
    Image.fromarray(np.array([levels], dtype=np.int32)).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif")[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("levels", [[-1, 5], [0, 2**16]])
def test_whole_numbers_beyond_16_bits_are_refused(tmp_path: Path, levels: list[int]):
    Image.fromarray(np.array([levels], dtype=np.int32)).save(tmp_path / "a.tif")
    expected = rf"a\.tif: cannot be read .*expected grey levels in 0 … 65535, got {levels[0]} … {levels[1]}\)$"
    with pytest.raises(PictureError, match=expected):
        read_picture(tmp_path / "a.tif")


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path: Path):
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(np.full((2, 2), 255, dtype=np.uint16)).save(tmp_path / name)
        assert read_picture(tmp_path / name).max() == 0, name


def test_floats_up_to_1_are_parts_of_white(tmp_path: Path):
    Image.fromarray(np.array([[-0.5, 0, 0.25, np.nan, 1]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 0, 63, 0, 255]


def test_floats_are_taken_as_grey_levels_and_cut_at_both_ends(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-5, 0, 99.9, 255, 1e6]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 0, 99, 255, 255]


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    image.putpalette([*RED, *GREEN, *BLUE])
    image.save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[0].tolist() == [list(RED), list(GREEN), list(BLUE)]


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_transparent_palette_entry_is_white(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    image.putpalette([*RED, *GREEN, *BLUE])
    image.save(tmp_path / name, transparency=1)
    assert read_picture(tmp_path / name)[0].tolist() == [list(RED), list(WHITE), list(BLUE)]


def test_alpha_is_seen_before_white(tmp_path: Path) -> None:
    opaque, invisible, half = (*RED, 255), (*RED, 0), (*BLACK, 127)
    Image.fromarray(np.array([[opaque, invisible, half]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[0].tolist() == [list(RED), list(WHITE), [128] * 3]


def test_grey_with_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[7, 255], [7, 0]]], dtype=np.uint8), mode="LA").save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[0].tolist() == [[7] * 3, list(WHITE)]


def test_a_colour_declared_transparent_is_white(tmp_path: Path) -> None:
    """PNG without an alpha channel may name one colour that is not shown."""
    Image.fromarray(np.array([[RED, GREEN]], dtype=np.uint8)).save(tmp_path / "a.png", transparency=GREEN)
    assert read_picture(tmp_path / "a.png")[0].tolist() == [list(RED), list(WHITE)]


def test_cmyk(tmp_path: Path) -> None:
    inks = np.zeros((16, 48, 4), dtype=np.uint8)
    inks[:, :16, 0] = inks[:, 16:32, 3] = 255  # cyan, black, and paper
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.jpg", quality=100)
    image = read_picture(tmp_path / "a.jpg").astype(int)
    for column, colour in ((8, (0, 255, 255)), (24, BLACK), (40, WHITE)):
        assert np.abs(image[8, column] - colour).max() <= 3


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = read_picture(tmp_path / "a.gif")
    assert image.shape == (4, 6, 3)
    assert (image == RED).all()


# --- orientation ---

# The picture that a viewer shows, from the stored one: the table "Orientation" of the EXIF standard in NumPy.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_every_exif_orientation_comes_upright(
    tmp_path: Path, pixels: np.ndarray, orientation: int, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_picture(path), UPRIGHT[orientation](pixels))


@pytest.mark.parametrize(("orientation", "row", "column"), [(1, 0, 0), (3, -1, -1), (6, 0, -1), (8, -1, 0)])
def test_the_marked_corner_of_a_phones_photograph(tmp_path: Path, orientation: int, row: int, column: int) -> None:
    """A phone can be held in four ways; row and column are the sensor's red corner in the upright picture."""
    stored = np.full((32, 64, 3), 255, dtype=np.uint8)
    stored[:16, :16] = RED
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_picture(tmp_path / "a.jpg").astype(int)
    assert image.shape == ((32, 64, 3) if orientation in (1, 3) else (64, 32, 3))
    corners = {(r, c): np.abs(image[r, c] - RED).max() < 30 for r in (0, -1) for c in (0, -1)}
    assert [corner for corner, is_red in corners.items() if is_red] == [(row, column)]


# --- names and sizes ---


@pytest.mark.parametrize("name", ["two words.png", "banane – été.png", "バナナ.png", "#%&'.png", "no_suffix_png"])
def test_any_name(tmp_path: Path, pixels: np.ndarray, name: str) -> None:
    Image.fromarray(pixels).save(tmp_path / name, format="PNG")
    np.testing.assert_array_equal(read_picture(tmp_path / name), pixels)


def test_what_counts_is_the_content_not_the_suffix(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg"), pixels)


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), GREEN).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").tolist() == [[list(GREEN)]]


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES))
def test_what_has_the_suffix_of_a_picture_can_be_read(tmp_path: Path, pixels: np.ndarray, suffix: str):
    mode = {".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")
    Image.fromarray(pixels).convert(mode).save(tmp_path / f"a{suffix}")
    assert picture_size(tmp_path / f"a{suffix}") == (20, 30)
    assert read_picture(tmp_path / f"a{suffix}").shape == (20, 30, 3)


def test_suffixes_are_lower_case_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png"} <= PICTURE_SUFFIXES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in PICTURE_SUFFIXES)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "lzw.tif"])
def test_picture_size_is_that_of_the_upright_picture(tmp_path: Path, pixels: np.ndarray, name: str, orientation: int):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    settings = {"compression": "tiff_lzw"} if name.startswith("lzw") else {}
    Image.fromarray(pixels).save(tmp_path / name, exif=exif, **settings)
    assert picture_size(tmp_path / name) == read_picture(tmp_path / name).shape[:2]
    assert picture_size(tmp_path / name) == ((20, 30) if orientation <= 4 else (30, 20))
    assert read_header(tmp_path / name) == ((20, 30), orientation)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_there_is_not(tmp_path: Path, pixels: np.ndarray, orientation: int):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert read_header(tmp_path / "a.png") == ((20, 30), 1)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), pixels)


def test_exif_data_after_the_pixels_of_a_png_turn_neither_the_size_nor_the_pixels(tmp_path: Path, pixels: np.ndarray):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    (tmp_path / "a.png").write_bytes(moved)
    assert picture_size(tmp_path / "a.png") == read_picture(tmp_path / "a.png").shape[:2] == (20, 30)


def test_a_jpeg_that_is_filled_up_after_its_end_is_whole(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"\0" * 7)
    assert picture_size(tmp_path / "a.jpg") == (20, 30)


# --- decoding at a reduced size ---


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (None, (600, 800)),
        ((600, 800), (600, 800)),
        ((151, 100), (600, 800)),
        ((150, 200), (300, 400)),
        ((75, 100), (150, 200)),
        ((1, 1), (75, 100)),
        ((5000, 1), (600, 800)),
    ],
)
def test_a_jpeg_is_decoded_at_no_less_than_twice_of_what_is_needed(tmp_path: Path, least, expected) -> None:
    Image.new("RGB", (800, 600)).save(tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg", least).shape[:2] == expected


def test_reduced_and_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (800, 200)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg", (200, 50)).shape[:2] == (400, 100)
    assert read_picture(tmp_path / "a.jpg", (50, 200)).shape[:2] == (800, 200)


def test_reduced_decoding_shows_the_same(tmp_path: Path) -> None:
    """Reduced further by resampling, as augmentation does, it is the whole picture's reduction within a few levels."""
    rows, columns = np.mgrid[:600, :800]
    image = np.stack((columns / 800 * 255, rows / 600 * 255, 127 + 100 * np.sin(columns / 40)), -1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95)
    whole, reduced = read_picture(tmp_path / "a.jpg"), read_picture(tmp_path / "a.jpg", (100, 100))
    assert reduced.shape == (300, 400, 3)
    of_whole, of_reduced = (
        np.asarray(Image.fromarray(image).resize((100, 100), Image.Resampling.BILINEAR), int)
        for image in (whole, reduced)
    )
    assert np.abs(of_whole - of_reduced).max() <= 6


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_decoding_of_other_colours(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (800, 600)).save(tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg", (100, 100)).shape == (300, 400, 3)


# --- what is no picture ---


def truncated(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize("name", ["broken.png", "broken.jpg", "broken.gif", "broken.bmp", "broken.tif", "broken.webp"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("read", [read_picture, picture_size])
def test_truncated_files_are_named(tmp_path: Path, pixels: np.ndarray, name: str, share: float, read) -> None:
    Image.fromarray(pixels).resize((90, 60)).save(tmp_path / name)
    truncated(tmp_path / name, share)
    with pytest.raises(PictureError, match=f"{name}: cannot be read as a picture"):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [read_picture, picture_size])
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"This is not a picture.", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8"]
)
def test_other_content_is_named(tmp_path: Path, read, content: bytes) -> None:
    (tmp_path / "text.png").write_bytes(content)
    with pytest.raises(PictureError, match=r"text\.png: cannot be read as a picture"):
        read(tmp_path / "text.png")


@pytest.mark.parametrize("read", [read_picture, picture_size])
def test_a_missing_file_is_named(tmp_path: Path, read) -> None:
    with pytest.raises(PictureError, match=r"gone\.png: expected a picture"):
        read(tmp_path / "gone.png")


@pytest.mark.parametrize("read", [read_picture, picture_size])
def test_a_folder_is_named(tmp_path: Path, read) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PictureError, match=r"folder\.png: expected a file, got a folder$"):
        read(tmp_path / "folder.png")


@pytest.mark.parametrize("read", [read_picture, picture_size])
def test_an_absurdly_large_picture_is_refused_before_it_fills_the_memory(tmp_path: Path, read) -> None:
    Image.new("1", (14_000, 14_000)).save(tmp_path / "bomb.png")
    with pytest.raises(PictureError) as error:
        read(tmp_path / "bomb.png")
    for part in ("bomb.png", "at most 178.957 megapixels", "14000×14000", "data.max_megapixels=196"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [read_picture, picture_size])
def test_pillows_limit_can_be_raised_and_lowered_and_stays_as_it_was(
    tmp_path: Path, pixels: np.ndarray, read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty rows of thirty pixels are 0.0006 megapixels."""
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(PictureError, match=r"a\.png: expected .* 0\.0005 megapixels, got 30×20 pixels"):
        read(tmp_path / "a.png", max_megapixels=0.0005)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)  # Pillow refuses above twice this number.
    with pytest.raises(PictureError, match="30×20"):
        read(tmp_path / "a.png")
    expected = pixels if read is read_picture else (20, 30)
    np.testing.assert_array_equal(read(tmp_path / "a.png", max_megapixels=0.0006), expected)
    assert Image.MAX_IMAGE_PIXELS == 299
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("read", [read_picture, picture_size])
def test_a_file_that_never_ends_is_not_opened(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name, kind in (("a.png", "a named pipe"), ("b.png", "a device")):
        with pytest.raises(PictureError, match=f"{name}: expected a file, got {kind}$"):
            read(tmp_path / name)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, pixels: np.ndarray) -> None:
    """Pillow has many ways to fail, above all with damaged EXIF data: all of them must name the file."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010F] = 6, "maker"
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "a.webp", "a.gif"):
        path = tmp_path / name
        Image.fromarray(pixels).save(path, **({} if name == "a.gif" else {"exif": exif}))
        content = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(content)
            for place in rng.integers(0, min(len(content), 150), rng.integers(1, 6)):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                assert read_picture(path).ndim == 3
            except PictureError as error:
                assert str(path) in str(error)  # noqa: PT017  # some damage does no harm


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives EPS to Ghostscript, whatever the name of the file says."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    Image.new("RGB", (30, 20)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    for read in (read_header, read_picture):
        with pytest.raises(PictureError, match=r"a\.jpg: cannot be read as a picture"):
            read(tmp_path / "a.jpg")
    assert not (tmp_path / "started").exists()
