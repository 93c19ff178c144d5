"""``ssd-predict``: pictures of all kinds, what it writes, and pictures that cannot be read."""

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folder import Trained

from ssd_lightning.cli.predict import PicturesToPredict
from ssd_lightning.cli.sources import find_pictures
from ssd_lightning.data.augmentation.windows import WHOLE
from ssd_lightning.training.checkpoint import load_detector


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 90, 3), dtype=np.uint8)
    colour = Image.fromarray(pixels)
    colour.save(folder / "colour.jpg")
    colour.convert("L").save(folder / "grey.png")
    colour.convert("P").save(folder / "palette.gif")
    colour.convert("RGBA").save(folder / "inner" / "alpha picture ü.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(folder / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    colour.save(folder / "turned.jpg", exif=exif)
    return folder


@pytest.mark.parametrize("letter", ["x", "漢"])
def test_names_that_leave_no_room_for_a_suffix(run, trained: Trained, tmp_path: Path, letter: str):
    name = letter * ((251 - len(".png")) // len(letter.encode())) + ".png"
    # They differ in the part that is cut off.
    for each in (name, name.replace(f"{letter}.png", "y.png"), "short.png"):
        Image.new("RGB", (90, 48)).save(tmp_path / each)
    outcome = run("ssd-predict", trained.checkpoint, f"source={tmp_path}", "num_workers=0", "hydra.run.dir=out")
    assert outcome.exit_code == 0, outcome.error
    drawings = [path.name for path in (tmp_path / "out/drawings").iterdir()]
    assert len(drawings) == 3
    assert "short.png.jpg" in drawings
    assert sum(drawing.startswith(letter * 70) for drawing in drawings) == 2


@pytest.mark.slow
def test_json_is_in_coco_style_for_pictures_of_all_kinds(run, trained: Trained, photos: Path, tmp_path: Path):
    outcome = run("ssd-predict", trained.checkpoint, f"source={photos}", "hydra.run.dir=out", "batch_size=4")
    assert outcome.exit_code == 0, outcome.error
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "banana"}]
    sizes = {Path(image["file_name"]).name: (image["width"], image["height"]) for image in content["images"]}
    assert sizes.pop("turned.jpg") == (48, 90)
    assert set(sizes.values()) == {(90, 48)}
    assert len(sizes) == 5
    ids = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    assert content["annotations"]
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        limit = ids[entry["image_id"]]
        assert left >= 0
        assert top >= 0
        assert left + width <= limit[0] + 0.02
        assert top + height <= limit[1] + 0.02
        assert 0.01 < entry["score"] <= 1
    drawings = {path.name for path in (tmp_path / "out/drawings").rglob("*.jpg")}
    assert drawings == {f"{name}.jpg" for name in [*sizes, "turned.jpg"]}


def test_agrees_with_the_detector_used_directly(run, trained: Trained, tmp_path: Path):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    run("ssd-predict", trained.checkpoint, "source=one.png", "hydra.run.dir=out", "num_workers=0")
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    detector = load_detector(trained.best)
    with torch.no_grad():
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        detections = detector.postprocess(detector.model(images), detector.model.default_boxes)
    scores = detections.scores[0][detections.valid[0]]
    assert [entry["score"] for entry in content["annotations"]] == pytest.approx(scores.tolist(), abs=1e-4)


def test_unreadable_pictures_are_listed_and_the_others_done(run, trained: Trained, photos: Path, tmp_path: Path):
    (photos / "broken.jpg").write_bytes((photos / "colour.jpg").read_bytes()[:300])
    (photos / "text.png").write_text("not a picture")
    outcome = run("ssd-predict", trained.checkpoint, f"source={photos}", "hydra.run.dir=out", "draw=false")
    assert outcome.exit_code == 1
    assert "2 of 8 pictures could not be read" in outcome.error
    assert "broken.jpg" in outcome.error
    assert "text.png" in outcome.error
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())["images"]) == 6
    assert not (tmp_path / "out/drawings").exists()


def test_the_largest_picture_is_an_option(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 20)).save(path)
    refused, read = (PicturesToPredict([path], (64, 64), True, [WHOLE], True, limit)[0] for limit in (0.0007, 0.0008))
    assert refused.views == ()
    for part in ("a.png", "40×20", "max_megapixels"):
        assert part in refused.error
    assert read.error == ""
    assert read.canvas.shape == (20, 40, 3)


def test_what_a_folder_holds(photos: Path, monkeypatch):
    for name in ("._colour.jpg", ".thumbnails/a.jpg", "inner/.b.png", "notes.txt", "c.jpg.part"):
        (photos / name).parent.mkdir(exist_ok=True)
        shutil.copy(photos / "colour.jpg", photos / name)
    for name in ("d.JFIF", "e.avif", "f.mpo"):
        (photos / name).touch()
    expected = {"alpha picture ü.png", "colour.jpg", "d.JFIF", "e.avif", "f.mpo", "grey.png", "palette.gif"}
    assert {path.name for path in find_pictures([str(photos)])} == expected | {"sixteen.png", "turned.jpg"}
    # The folder that is asked for may be hidden, and so may a picture.
    assert [path.name for path in find_pictures([str(photos / ".thumbnails")])] == ["a.jpg"]
    assert [path.name for path in find_pictures([str(photos / "inner/.b.png")])] == [".b.png"]
    monkeypatch.chdir(photos.parent)
    photos.rename("2024")
    assert len(find_pictures([2024])) == 9


@pytest.mark.parametrize("source", ["", "''", "[]", "null", "[a.png,null]", "[true,'']", "{a:1}"])
def test_a_source_that_is_none(run, tmp_path: Path, source: str):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    outcome = run("ssd-predict", "checkpoint=a.ckpt", f"source={source}")
    assert outcome.exit_code == 1
    assert outcome.message.startswith("ssd-predict: source: expected a picture")


@pytest.mark.parametrize("draw", ["true", "false"])
def test_a_full_disk(run, trained: Trained, photos: Path, tmp_path: Path, draw: str):
    """The system refuses more than 10 kB in a file, which is enough for Hydra's."""
    Image.open(photos / "colour.jpg").resize((900, 480)).save(photos / "colour.jpg")
    arguments = [f"source={photos}/colour.jpg", f"draw={draw}", "num_workers=0", "hydra.run.dir=out"]
    arguments += ["+postprocess.max_detections=200", "+postprocess.score_threshold=0.001"]
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, former[1]))
    try:
        outcome = run("ssd-predict", trained.checkpoint, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert outcome.exit_code == 1
    name = "drawings/colour.jpg.jpg" if draw == "true" else "predictions.json"
    assert outcome.message.startswith("ssd-predict: ")
    assert str(tmp_path / "out" / name) in outcome.message
    assert "File too large" in outcome.message
    left = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".jpg", ".json", ".part")]
    assert left == []


def test_one_job_for_each_value(run, trained: Trained, photos: Path, tmp_path: Path):
    """A picture that cannot be read in one does not stop the next."""
    (photos / "inner/broken.jpg").write_text("not a picture")
    outcome = run(
        "ssd-predict", "-m", trained.checkpoint,
        f"source='{photos}/inner','{photos}/colour.jpg'", "num_workers=0", "draw=false",
    )  # fmt: skip
    assert outcome.exit_code == 1
    assert "1 of 2 pictures could not be read" in outcome.error
    assert "inner/broken.jpg" in outcome.error
    [sweep] = (tmp_path / "runs/predict").iterdir()
    for job in ("0", "1"):
        assert len(json.loads((sweep / job / "predictions.json").read_text())["images"]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "runs"}


def test_pattern_and_list_of_sources(run, trained: Trained, photos: Path, tmp_path: Path):
    outcome = run(
        "ssd-predict",
        trained.checkpoint,
        f"source=['{photos}/*.png','{photos}/colour.jpg','{photos}/grey.png']",
        "hydra.run.dir=out",
        "num_workers=0",
    )
    assert outcome.exit_code == 0, outcome.error
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    names = [Path(image["file_name"]).name for image in content["images"]]
    assert sorted(names) == ["colour.jpg", "grey.png", "sixteen.png"]


def test_a_subfolder_that_may_not_be_read_is_named(photos: Path, monkeypatch):
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(ValueError, match=f"^source: .*{photos}/inner .*Permission denied"):
        find_pictures([str(photos)])


def test_a_source_without_pictures(run, trained: Trained, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for source in ("empty", "nowhere", "nowhere/*.jpg"):
        outcome = run("ssd-predict", trained.checkpoint, f"source={source}")
        assert outcome.exit_code == 1
        assert outcome.message.startswith("ssd-predict: source: ")
        assert source in outcome.message


@pytest.mark.parametrize("arguments", [[], ["checkpoint=null"]])
def test_a_checkpoint_is_required(run, tmp_path: Path, arguments: list[str]):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    outcome = run("ssd-predict", "source=x.png", *arguments)
    assert outcome.exit_code == 1
    assert "checkpoint" in outcome.message
