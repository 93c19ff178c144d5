"""Prediction in Python: pictures of all kinds, what comes back, and pictures that are none."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from random_detector import CLASSES, photo, random_detector, same
from run_folder import Trained

from ssd_lightning.data.pictures import PictureError
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.prediction import Found, Picture
from ssd_lightning.training.checkpoint import load_detector


@pytest.fixture(scope="module")
def detector() -> Detector:
    return random_detector()


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(48, 90), (64, 80), (300, 7)])
def test_boxes_are_those_of_the_parts_in_pixels(antialias: bool, size: tuple[int, int]):
    detector = random_detector(antialias)
    picture = photo(*size)
    found = detector.predict(picture, score_threshold=0)
    if antialias:
        resized = np.asarray(picture.resize((80, 64), Image.Resampling.BILINEAR)).astype(np.float32)
    else:
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(tensor, (64, 80), mode="bilinear")[0].permute(1, 2, 0).numpy()
    images = torch.from_numpy(resized).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = detector.postprocess(detector.model(images), detector.model.default_boxes)
    number = int(expected.valid.sum())
    assert number > 3
    height, width = size
    assert found.size == size
    boxes = expected.boxes[0, :number] * torch.tensor([width, height, width, height])
    labels, scores = expected.labels[0, :number], expected.scores[0, :number]
    # Scores that differ by rounding alone may come in another order.
    ours = np.column_stack([found.boxes, found.labels * 1000, found.scores * 100])
    theirs = np.column_stack([boxes, labels * 1000, scores * 100])
    apart = np.abs(ours[:, None] - theirs[None]).max(axis=2)
    assert apart.shape == (number, number)
    assert apart.min(axis=0).max() < 1e-2
    assert apart.min(axis=1).max() < 1e-2
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)
    assert found.names == tuple(CLASSES[label - 1] for label in found.labels)
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("antialias", [True, False])
def test_a_picture_of_one_pixel(antialias: bool):
    found = random_detector(antialias).predict(photo(1, 1), score_threshold=0)
    assert found.size == (1, 1)
    assert len(found.boxes) > 3
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()


def test_every_form_of_a_picture_gives_the_same(detector: Detector, tmp_path: Path):
    picture = photo()
    pixels = np.asarray(picture)
    picture.save(tmp_path / "a.png")
    expected = detector.predict(picture, score_threshold=0.05)
    assert len(expected.boxes) > 0
    forms: list[Picture] = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        Image.open(tmp_path / "a.png"),
        pixels,
        np.array(pixels, order="F"),
        pixels[:, ::-1][:, ::-1],
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        picture.convert("RGBA"),
    ]
    for form in forms:
        same(detector.predict(form, score_threshold=0.05), expected)
    for found in detector.predict(iter(forms), score_threshold=0.05, batch_size=3):
        same(found, expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_a_picture_in_memory_is_read_as_its_file(detector: Detector, mode: str, tmp_path: Path):
    grey = photo().convert("L")
    levels = np.asarray(grey)
    if mode == "I;16":
        picture = Image.fromarray(levels.astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        picture = Image.fromarray(levels.astype(np.int32 if mode == "I" else np.float32))
    else:
        picture = photo().convert(mode)
    expected = grey if mode in ("L", "LA", "I", "I;16", "F") else picture.convert("RGB")
    found = detector.predict(picture, score_threshold=0.05)
    assert len(found.boxes) > 0
    same(found, detector.predict(expected, score_threshold=0.05))


def test_exif_data_turn_a_file_and_a_picture_of_pillow(detector: Detector, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    photo(48, 90).save(tmp_path / "turned.png", exif=exif)
    upright = photo(48, 90).transpose(Image.Transpose.ROTATE_270)
    expected = detector.predict(upright, score_threshold=0.05)
    assert expected.size == (90, 48)
    same(detector.predict(tmp_path / "turned.png", score_threshold=0.05), expected)
    same(detector.predict(Image.open(tmp_path / "turned.png"), score_threshold=0.05), expected)
    assert detector.draw(tmp_path / "turned.png", expected).size == (48, 90)


def test_one_picture_gives_one_result_and_several_a_list(detector: Detector):
    assert isinstance(detector.predict(photo()), Found)
    assert isinstance(detector.predict([photo()]), list)
    assert detector.predict([]) == []
    assert detector.predict(iter(())) == []
    results = detector.predict((photo(seed=seed) for seed in range(5)), score_threshold=0.05, batch_size=2)
    for seed, found in enumerate(results):
        same(found, detector.predict(photo(seed=seed), score_threshold=0.05))


def test_the_network_gets_batches_and_pictures_are_read_as_needed(detector: Detector, monkeypatch):
    events: list[object] = []
    run = Detector.run
    monkeypatch.setattr(Detector, "run", lambda self, images: (events.append(len(images)), run(self, images))[1])

    def pictures():
        for seed in range(5):
            events.append("read")
            yield photo(seed=seed)

    detector.predict(pictures(), batch_size=2)
    assert events == ["read", "read", 2, "read", "read", 2, "read", 1]


def test_scores_and_classes_filter_the_detections(detector: Detector):
    everything = detector.predict(photo(), score_threshold=0)
    scores, names = everything.scores, np.array(everything.names)
    assert scores.max() > 0.5 > scores.min()
    assert set(names) == set(CLASSES)
    assert detector.predict(photo()).scores.tolist() == scores[scores >= 0.5].tolist()
    middle = float(scores[len(scores) // 2])
    assert detector.predict(photo(), score_threshold=middle).scores.tolist() == scores[scores >= middle].tolist()
    chosen = detector.predict(photo(), score_threshold=0, classes=["plum", "apple"])
    assert chosen.scores.tolist() == scores[names != "pear"].tolist()
    assert set(chosen.names) == {"plum", "apple"}
    nothing = detector.predict(photo(), score_threshold=1)
    assert nothing.boxes.shape == (0, 4)
    assert nothing.names == ()
    assert nothing.to_coco() == []
    assert np.array_equal(np.asarray(detector.draw(photo(), nothing)), np.asarray(photo()))


def test_coco_annotations(detector: Detector):
    found = detector.predict(photo(), score_threshold=0.1)
    entries = found.to_coco(image_id=7, first_id=100)
    assert json.loads(json.dumps(entries)) == entries
    assert [entry["id"] for entry in entries] == list(range(100, 100 + len(found.scores)))
    for entry, (left, top, right, bottom), label in zip(entries, found.boxes, found.labels, strict=True):
        assert entry["image_id"] == 7
        assert entry["category_id"] == label
        assert entry["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.006)


def test_supervision(detector: Detector, monkeypatch):
    found = detector.predict(photo(), score_threshold=0.1)
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    theirs = found.to_supervision()
    assert theirs.xyxy is found.boxes
    assert theirs.confidence is found.scores
    assert [CLASSES[number] for number in theirs.class_id] == list(found.names) == theirs.data["class_name"].tolist()
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"^supervision: expected .* Try pip install supervision"):
        found.to_supervision()


def test_a_drawing_has_boxes_and_the_picture_is_unchanged(detector: Detector):
    picture = photo(120, 160)
    before = np.array(picture)
    drawn = np.asarray(detector.draw(picture, detector.predict(picture)))
    assert np.array_equal(np.asarray(picture), before)
    assert drawn.shape == before.shape
    assert (drawn != before).any()
    with pytest.raises(ValueError, match=r"^found: expected detections in a picture of \(48, 90\)"):
        detector.draw(photo(48, 90), detector.predict(picture))


@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (3, "int"),
        (None, "NoneType"),
        (np.zeros((3, 20, 20), np.uint8), "an array of (3, 20, 20)"),
        (np.zeros((20, 20), np.uint8), "an array of (20, 20)"),
        (np.zeros((20, 20, 4), np.uint8), "an array of (20, 20, 4)"),
        (np.zeros((2, 20, 20, 3), np.uint8), "an array of (2, 20, 20, 3)"),
        (np.zeros((0, 20, 3), np.uint8), "an array of (0, 20, 3)"),
        (np.zeros((20, 20, 3)), "numbers of float64"),
        (torch.zeros(20, 20, 3, dtype=torch.uint8), "a tensor of (20, 20, 3)"),
        (torch.zeros(2, 3, 20, 20, dtype=torch.uint8), "a tensor of (2, 3, 20, 20)"),
        (torch.zeros(3, 20, 20), "numbers of float32"),
        (Image.new("RGB", (0, 5)), "an array of (5, 0, 3)"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(detector: Detector, picture: object, got: str):
    for given, key in ((picture, "pictures"), ([photo(), picture], "pictures[1]")):
        with pytest.raises(ValueError, match=r"^pictures") as caught:
            detector.predict(given)
        message = str(caught.value)
        assert message.startswith(f"{key}: expected ")
        assert message.endswith(f"got {got}")
        assert "\n" not in message


def test_missing_and_damaged_files_are_named(detector: Detector, tmp_path: Path):
    (tmp_path / "text.png").write_text("no picture")
    photo(200, 200).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    for name in ("nowhere.png", "text.png", "cut.png"):
        with pytest.raises(PictureError, match=name):
            detector.predict([photo(), tmp_path / name])
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(PictureError, match=r"cut\.png"):
        detector.predict(opened)
    with pytest.raises(PictureError, match=tmp_path.name):
        detector.predict(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"classes": ["cherry"]}, "classes"),
        ({"classes": "plum"}, "classes"),
        ({"classes": 3}, "classes"),
    ],
)
def test_arguments_out_of_range(detector: Detector, arguments: dict, key: str):
    with pytest.raises(ValueError, match=f"^{key}: expected"):
        detector.predict([], **arguments)


def test_a_network_in_training_mode_is_refused():
    detector = random_detector()
    detector.model.train()
    with pytest.raises(ValueError, match=r"^model: expected evaluation mode"):
        detector.predict(photo())


def test_precision(detector: Detector):
    dtypes: list[torch.dtype] = []
    [layer] = [layer for name, layer in detector.model.named_modules() if name == "head.classification.0"]
    hook = layer.register_forward_hook(lambda layer, given, result: dtypes.append(result.dtype))
    for precision in ("bf16-mixed", "16-mixed", None):
        found = detector.to("cpu", precision).predict(photo(), score_threshold=0.05)
        assert found.scores.dtype == np.float32
    hook.remove()
    assert dtypes == [torch.bfloat16, torch.float16, torch.float32]
    with pytest.raises(ValueError, match=r"^precision: expected one of 32-true"):
        detector.to("cpu", "half")
    with pytest.raises(ValueError, match=r"^device: expected"):
        detector.to("nowhere")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    expected = random_detector().predict(photo(), score_threshold=0.05)
    found = random_detector().to("cuda").predict(photo(), score_threshold=0.05)
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)


@pytest.mark.parametrize("antialias", [True, False])
def test_the_command_finds_the_same(run, trained: Trained, antialias: bool, tmp_path: Path):
    checkpoint = torch.load(trained.best, weights_only=True)
    checkpoint["ssd_lightning"]["model"]["antialias"] = antialias
    torch.save(checkpoint, tmp_path / "my.ckpt")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (height, width) in enumerate([(480, 700), (40, 30), (64, 64)]):
        photo(height, width, number).save(folder / f"{number}.jpg", quality=95)
    outcome = run(
        "ssd-predict", "checkpoint=my.ckpt", "source=photos", "num_workers=0", "draw=false", "hydra.run.dir=out"
    )
    assert outcome.exit_code == 0, outcome.error
    theirs = json.loads((tmp_path / "out/predictions.json").read_text())
    paths = [Path(image["file_name"]) for image in theirs["images"]]
    assert len(paths) == 3
    ours = load_detector(tmp_path / "my.ckpt").predict(paths, score_threshold=0)
    annotations = [
        entry
        for number, found in enumerate(ours, start=1)
        for entry in found.to_coco(number, first_id=1 + sum(len(before.scores) for before in ours[: number - 1]))
    ]
    assert annotations == theirs["annotations"] != []
