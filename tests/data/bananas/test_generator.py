"""Tests of the generated banana data set: files, boxes, reproducibility, and folders that are in the way."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd_lightning.data.bananas import generator as banana_generator
from ssd_lightning.data.bananas.generator import draw_picture, generate_bananas

HEADER = ["img_name", "label", "xmin", "ymin", "xmax", "ymax"]
WHITE, BLACK = 255, 0


def read_labels(split: Path) -> list[list[str]]:
    with (split / "label.csv").open(newline="") as file:
        return list(csv.reader(file))


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def iou(first: np.ndarray, second: np.ndarray) -> float:
    width, height = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = max(width, 0) * max(height, 0)
    return shared / (np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - shared)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bananas") / "small"
    generate_bananas(root, num_train=6, num_val=3, seed=5, workers=1)
    return root


@pytest.fixture
def silhouettes(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Draw white bananas on black without the camera, and collect the canvas after each paste."""
    canvases: list[np.ndarray] = []
    draw_banana, paste = banana_generator.draw_banana, banana_generator.paste

    def white_banana(rng, light):
        banana = draw_banana(rng, light)
        white = Image.new("RGBA", banana.size, (WHITE, WHITE, WHITE, 255))
        white.putalpha(banana.getchannel("A"))
        return white

    def recorded_paste(canvas, thing, left, top, light):
        result = paste(canvas, thing, left, top, light)
        canvases.append(np.asarray(result)[..., 0])
        return result

    monkeypatch.setattr(banana_generator, "draw_background", lambda rng: Image.new("RGB", (256, 256)))
    monkeypatch.setattr(banana_generator, "MAX_DISTRACTORS", 0)
    monkeypatch.setattr(banana_generator, "draw_banana", white_banana)
    monkeypatch.setattr(banana_generator, "paste", recorded_paste)
    monkeypatch.setattr(banana_generator, "photograph", lambda rng, canvas: np.array(canvas))
    return canvases


def test_folders_files_and_columns_are_those_of_d2l(small: Path):
    for split, count in (("bananas_train", 6), ("bananas_val", 3)):
        names = [f"{number}.png" for number in range(count)]
        assert {path.name for path in (small / split / "images").iterdir()} == set(names)
        header, *rows = read_labels(small / split)
        assert header == HEADER
        assert [row[:2] for row in rows] == [[name, "0"] for name in names]
        for name, _, *box in rows:
            xmin, ymin, xmax, ymax = map(int, box)
            assert 0 <= xmin < xmax <= 256
            assert 0 <= ymin < ymax <= 256
            with Image.open(small / split / "images" / name) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (256, 256))


def test_number_of_workers_changes_nothing(small: Path, tmp_path: Path):
    generate_bananas(tmp_path / "two", num_train=6, num_val=3, seed=5, workers=2)
    assert files_of(tmp_path / "two") == files_of(small)


def test_pictures_differ_between_seeds_splits_and_numbers(small: Path, tmp_path: Path):
    generate_bananas(tmp_path / "other", num_train=1, num_val=1, seed=6, workers=1)
    pictures = [*small.rglob("*.png"), *(tmp_path / "other").rglob("*.png")]
    assert len({path.read_bytes() for path in pictures}) == len(pictures) == 11


def test_a_longer_data_set_begins_with_the_shorter_one(small: Path, tmp_path: Path):
    generate_bananas(tmp_path / "short", num_train=2, num_val=1, seed=5, workers=1)
    assert read_labels(tmp_path / "short" / "bananas_train") == read_labels(small / "bananas_train")[:3]
    last = "bananas_train/images/1.png"
    assert (tmp_path / "short" / last).read_bytes() == (small / last).read_bytes()


def test_box_touches_the_outermost_pixels_of_the_banana(silhouettes: list[np.ndarray]):
    for seed in range(25):
        picture = draw_picture(np.random.default_rng(seed), 1)
        covered = [(x, y) for y, x in zip(*np.nonzero(picture.pixels[..., 0] > WHITE / 2), strict=True)]
        columns, rows = zip(*covered, strict=True)
        assert picture.boxes.tolist() == [[min(columns), min(rows), max(columns) + 1, max(rows) + 1]]


def test_bananas_have_no_holes(silhouettes: list[np.ndarray]):
    for seed in range(25):
        picture = draw_picture(np.random.default_rng(seed), 1)
        silhouette = picture.pixels[..., 0].astype(int)
        around = np.minimum.reduce([np.roll(silhouette, shift, axis) for shift in (-1, 1) for axis in (0, 1)])
        assert not ((around == WHITE) & (silhouette < WHITE)).any()


def test_all_bananas_are_visible_and_their_boxes_overlap_little(silhouettes: list[np.ndarray]):
    for seed in range(10):
        silhouettes.clear()
        boxes = draw_picture(np.random.default_rng(seed), 5).boxes
        assert boxes.shape == (5, 4)
        before = np.zeros((256, 256), int)
        for canvas, (xmin, ymin, xmax, ymax) in zip(silhouettes, boxes, strict=True):
            added = (canvas > WHITE / 2) & (before <= WHITE / 2)
            rows, columns = np.nonzero(added)
            # Two bananas that touch can each cover less than half of a pixel on the rim.
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(tight, (xmin, ymin, xmax, ymax), atol=1)
            before = canvas
        pairs = [iou(boxes[i], boxes[j]) for i in range(5) for j in range(i)]
        assert max(pairs) <= 0.1


def test_sizes_are_those_of_the_original():
    """The expected values are quantiles (5, 25, 50, 75, 95 %) of the 100 boxes of d2l's bananas_val."""
    light = banana_generator.random_light(np.random.default_rng(0))
    boxes = []
    for seed in range(150):
        banana = banana_generator.draw_banana(np.random.default_rng(seed), light)
        boxes.append(banana_generator.tight_box(banana_generator.covered_pixels(banana)))
    width, height = (np.array(boxes)[:, 2:] - np.array(boxes)[:, :2]).T
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    size = np.quantile(np.sqrt(width * height), quantiles)
    np.testing.assert_allclose(size, [39.0, 43.8, 51.9, 56.5, 60.9], atol=2.5)
    # A tenth gets a random rotation on purpose, so the outer quantiles of the aspect ratio lie farther out.
    aspect = np.quantile(np.log(width / height), quantiles)
    assert (np.abs(aspect - [-0.30, -0.08, 0.02, 0.12, 0.28]) < [0.3, 0.08, 0.05, 0.08, 0.3]).all()
    for side in (width, height):
        assert side.min() >= 32
        assert side.max() <= 83
        assert abs(np.median(side) - 50.5) < 3


def test_places_are_those_of_the_original(silhouettes: list[np.ndarray], monkeypatch: pytest.MonkeyPatch):
    """The boxes of d2l lie anywhere between 7 and 250 pixels; the quartiles of their centres are 80, 127, 176."""
    banana = banana_generator.draw_banana(
        np.random.default_rng(0), banana_generator.random_light(np.random.default_rng(0))
    )
    monkeypatch.setattr(banana_generator, "draw_banana", lambda rng, light: banana)  # Drawing one banana only is fast.
    boxes = np.concatenate([draw_picture(np.random.default_rng(seed), 1).boxes for seed in range(400)])
    assert boxes.min() == 6
    assert boxes.max() == 250
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(np.quantile(centres, [0.25, 0.5, 0.75], axis=0).T, [[80, 127, 176]] * 2, atol=12)


def test_from_none_to_five_bananas(tmp_path: Path):
    generate_bananas(tmp_path / "many", num_train=24, num_val=1, min_bananas=0, max_bananas=5, workers=1)
    _, *rows = read_labels(tmp_path / "many" / "bananas_train")
    per_picture = [sum(row[0] == f"{number}.png" for row in rows) for number in range(24)]
    assert set(per_picture) == {0, 1, 2, 3, 4, 5}
    numbers = [int(row[0].removesuffix(".png")) for row in rows]
    assert numbers == sorted(numbers)
    assert len(list((tmp_path / "many" / "bananas_train" / "images").iterdir())) == 24


def test_a_picture_without_bananas():
    picture = draw_picture(np.random.default_rng(0), 0)
    assert picture.boxes.shape == (0, 4)
    assert picture.pixels.shape == (256, 256, 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_interruption_leaves_nothing(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(results, total):
        for number, result in enumerate(results):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(banana_generator, "_with_progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_bananas(tmp_path / "bananas", num_train=20, num_val=2, workers=workers)
    assert list(tmp_path.iterdir()) == []


def test_abandoned_folders_are_deleted_and_active_ones_stay(tmp_path: Path):
    ages = {"killed": (7200, 7200), "just begun": (0, None), "long at work": (7200, 60)}
    for name, (age, age_of_pictures) in ages.items():
        folder = tmp_path / f".bananas [1]-unfinished-{name}"
        folder.mkdir()
        if age_of_pictures is not None:
            pictures = folder / "bananas [1]" / "bananas_train" / "images"
            pictures.mkdir(parents=True)
            (pictures / "0.png").touch()
            os.utime(pictures, times=2 * (time.time() - age_of_pictures,))
        os.utime(folder, times=2 * (time.time() - age,))
    (tmp_path / ".others-unfinished-killed").mkdir()
    os.utime(tmp_path / ".others-unfinished-killed", times=(0, 0))
    generate_bananas(tmp_path / "bananas [1]", num_train=1, num_val=1, workers=1)
    assert {path.name for path in tmp_path.iterdir()} == {
        "bananas [1]",
        ".bananas [1]-unfinished-just begun",
        ".bananas [1]-unfinished-long at work",
        ".others-unfinished-killed",
    }


def test_a_finished_data_set_is_left_alone(small: Path, monkeypatch: pytest.MonkeyPatch):
    before = files_of(small)
    monkeypatch.setattr(banana_generator, "_write_data_set", lambda *_: pytest.fail("was generated again"))
    generate_bananas(small, num_train=6, num_val=3, seed=5)
    assert files_of(small) == before


def test_another_process_that_finishes_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, write = tmp_path / "bananas", banana_generator._write_data_set

    def overtaken(folder, settings, workers):
        write(folder, settings, workers)
        write(root, settings, workers)
        (root / "theirs").touch()

    monkeypatch.setattr(banana_generator, "_write_data_set", overtaken)
    generate_bananas(root, num_train=1, num_val=1, workers=1)
    assert (root / "theirs").exists()
    assert list(tmp_path.iterdir()) == [root]


def test_other_settings_are_an_error_that_names_both(small: Path):
    before = files_of(small)
    with pytest.raises(ValueError, match=r"root: .*'seed': 7.*'seed': 5"):
        generate_bananas(small, num_train=6, num_val=3, seed=7)
    assert files_of(small) == before


def test_an_older_generator_is_an_error(small: Path, tmp_path: Path):
    settings = json.loads((small / "generated.json").read_text())
    (tmp_path / "generated.json").write_text(json.dumps(settings | {"generator_version": 0}))
    with pytest.raises(ValueError, match="'generator_version': 0"):
        generate_bananas(tmp_path, num_train=6, num_val=3, seed=5)


def test_a_folder_with_other_content_is_an_error(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"root: .*generated\.json"):
        generate_bananas(tmp_path, num_train=1, num_val=1)
    assert files_of(tmp_path) == {"thesis.txt": b"precious"}


def test_a_broken_settings_file_is_named(tmp_path: Path):
    (tmp_path / "generated.json").write_text("{")
    with pytest.raises(ValueError, match=r"generated\.json: .*JSON"):
        generate_bananas(tmp_path, num_train=1, num_val=1)


def test_an_empty_folder_is_filled(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    generate_bananas(tmp_path / "empty", num_train=1, num_val=1, workers=1)
    assert (tmp_path / "empty" / "bananas_val" / "images" / "0.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train: expected a whole number of at least 1, got 0"),
        ({"num_val": 0}, "num_val: expected a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"workers": 0}, "workers: expected a whole number of at least 1, got 0"),
        ({"min_bananas": -1}, "min_bananas: expected a whole number of at least 0, got -1"),
        ({"min_bananas": 2}, "max_bananas: expected a whole number of at least 2, got 1"),
        ({"max_bananas": 11}, "max_bananas: expected at most 10, got 11"),
    ],
)
def test_refused_arguments(arguments: dict[str, int], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        generate_bananas(tmp_path / "bananas", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_bananas", [-1, 11])
def test_refused_number_of_bananas_in_a_picture(num_bananas: int):
    with pytest.raises(ValueError, match=f"num_bananas: .*got {num_bananas}"):
        draw_picture(np.random.default_rng(0), num_bananas)


def test_a_script_without_main_guard_works_and_is_not_imported(tmp_path: Path):
    """A spawned process imports the main module by default, which would run the script again and fail."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from ssd_lightning.data.bananas.generator import generate_bananas\n"
        "print('script runs, torch' if 'torch' in sys.modules else 'script runs, no torch')\n"
        "generate_bananas(Path(sys.argv[1]), num_train=2, num_val=1, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script, tmp_path / "bananas"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "script runs, no torch"
    assert done.stdout.count("script runs") == 1
    assert (tmp_path / "bananas" / "generated.json").is_file()
