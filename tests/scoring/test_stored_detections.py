"""The file of stored detections."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.scoring import stored_detections
from ssd_lightning.scoring.stored_detections import FILE_NAME, load_detections, save_detections

CLASSES = ("banana", "plátano grande")
PATHS = [Path("data/0.png"), Path("data/été 1.png")]


def random_records(detections: int = 5, objects: int = 3) -> tuple[DetectionRecords, ObjectRecords]:
    rng = np.random.default_rng(0)
    return (
        DetectionRecords(
            rng.integers(0, 2, detections),
            rng.integers(1, 3, detections),
            rng.random((detections, 4), dtype=np.float32) * 300,
            rng.random(detections, dtype=np.float32),
        ),
        ObjectRecords(
            rng.integers(0, 2, objects),
            rng.integers(1, 3, objects),
            rng.random((objects, 4), dtype=np.float32) * 300,
            rng.random(objects) < 0.5,
        ),
    )


@pytest.mark.parametrize(("detections", "objects"), [(5, 3), (0, 3), (5, 0), (0, 0)])
def test_what_was_saved_comes_back(tmp_path: Path, detections: int, objects: int) -> None:
    saved = random_records(detections, objects)
    save_detections(tmp_path / "detections.npz", *saved, PATHS, CLASSES)
    stored = load_detections(tmp_path / "detections.npz")
    for written, read in zip((*saved[0], *saved[1]), (*stored.detections, *stored.objects), strict=True):
        np.testing.assert_array_equal(read, written)
        assert read.dtype == written.dtype
    assert stored.paths == tuple(str(path) for path in PATHS)
    assert stored.classes == CLASSES


def test_the_file_holds_plain_arrays(tmp_path: Path) -> None:
    save_detections(tmp_path / "detections.npz", *random_records(), PATHS, CLASSES)
    with np.load(tmp_path / "detections.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
        assert {"detections.scores", "objects.difficult", "paths", "classes"} <= set(file.files)


def test_saving_again_replaces(tmp_path: Path) -> None:
    for count in (5, 2):
        save_detections(tmp_path / "detections.npz", *random_records(count), PATHS, CLASSES)
    assert len(load_detections(tmp_path / "detections.npz").detections.scores) == 2


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=r"detections: .*which cannot be read") as caught:
        load_detections(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "gone.npz")
    assert str(tmp_path / "detections.npz") in refusal(tmp_path)


def test_a_run_folder_holds_the_file(tmp_path: Path) -> None:
    save_detections(tmp_path / "detections.npz", *random_records(), PATHS, CLASSES)
    assert len(load_detections(tmp_path).detections.scores) == 5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "No data left in file"),
        (b"a text\n", "pickled"),
        (b"PK\x03\x04", "not a zip file"),
        (pickle.dumps([1, 2]), "pickled"),
    ],
)
def test_another_file(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "detections.npz").write_bytes(content)
    assert reason in refusal(tmp_path / "detections.npz")


def test_a_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    assert "it holds a single array" in refusal(tmp_path / "array.npy")


def test_other_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "detections.npz", boxes=np.zeros((3, 4)))
    assert "paths" in refusal(tmp_path / "detections.npz")


def test_arrays_that_would_run_code_are_not_opened(tmp_path: Path) -> None:
    save_detections(tmp_path / "detections.npz", *random_records(), PATHS, CLASSES)
    with np.load(tmp_path / "detections.npz") as file:
        arrays = dict(file)
    arrays["paths"] = np.array([object()], dtype=object)
    np.savez(tmp_path / "detections.npz", **arrays)
    assert "pickled objects, which can run code" in refusal(tmp_path / "detections.npz")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("detections.image_ids", lambda ids: ids + len(PATHS)),
        ("detections.image_ids", lambda ids: ids - len(PATHS)),
        ("detections.image_ids", lambda ids: ids.astype(float)),
        ("objects.image_ids", lambda ids: ids + 10**9),
        ("detections.labels", lambda labels: labels * 0),
        ("objects.labels", lambda labels: labels + len(CLASSES)),
        ("detections.scores", lambda scores: scores * np.inf),
        ("detections.scores", lambda scores: scores * np.nan),
        ("detections.scores", lambda scores: scores + 1),
        ("detections.scores", lambda scores: scores[:-1]),
        ("detections.boxes", lambda boxes: boxes[:, :3]),
        ("detections.boxes", lambda boxes: boxes * np.inf),
        ("objects.boxes", lambda boxes: boxes * np.nan),
        ("objects.difficult", lambda difficult: difficult.astype(int)),
        ("paths", lambda paths: np.arange(len(paths))),
        ("classes", lambda classes: np.arange(len(classes))),
        ("paths", lambda paths: paths[:, None]),
    ],
)
def test_values_that_no_run_writes(tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    save_detections(tmp_path / "detections.npz", *random_records(), PATHS, CLASSES)
    with np.load(tmp_path / "detections.npz") as file:
        arrays = dict(file)
    arrays[name] = change(arrays[name])
    np.savez(tmp_path / "detections.npz", **arrays)
    assert f"({name}: expected" in refusal(tmp_path / "detections.npz")


def test_a_small_file_that_holds_a_lot_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_detections, "LARGEST_CONTENT", 10**6)
    np.savez_compressed(tmp_path / FILE_NAME, classes=np.zeros(10**6))
    assert (tmp_path / FILE_NAME).stat().st_size < 10**5
    with pytest.raises(ValueError, match=f"{tmp_path / FILE_NAME}, .* more than 1000000"):
        load_detections(tmp_path)


def test_damage_of_any_kind_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "detections.npz"
    save_detections(path, *random_records(), PATHS, CLASSES)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for length in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refusal(path)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_detections(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  # some damage does no harm
