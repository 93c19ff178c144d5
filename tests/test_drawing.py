"""Tests of drawings: colours of pixels where lines must be, and the objects that matplotlib draws."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from banana_folder import write_banana_folder
from legible import assert_legends_are_outside
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import ImageDraw

from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.data.augmentation.windows import ZoomIn
from ssd_lightning.data.bananas.dataset import Bananas
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.data.pictures import read_picture
from ssd_lightning.drawing import (
    COLOURS,
    class_colour,
    draw_boxes,
    draw_detections,
    place_labels,
    save_figure,
    score_limits,
    smoothing_window,
)
from ssd_lightning.records import DetectionRecords, ObjectRecords, Sample
from ssd_lightning.training.figures import draw_curves, draw_training_pictures
from ssd_lightning.training.loggers.metrics_file import MetricsFile

CLASSES = ("banana", "plantain")


def rgb(name: str) -> list[int]:
    return [round(255 * share) for share in to_rgb(name)]


# --- boxes on a picture ---


def drawn_on(image: np.ndarray, *boxes: tuple[float, ...], labels: list[int] | None = None) -> np.ndarray:
    labels = labels or [1] * len(boxes)
    scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
    return draw_boxes(
        image, np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64), scores, CLASSES
    )


def test_the_border_of_a_box_has_the_colour_of_its_class() -> None:
    image = np.full((200, 300, 3), 7, dtype=np.uint8)
    drawn = drawn_on(image, (20, 40, 120, 160), (180, 100, 280, 190), labels=[1, 2])
    for label, (right, bottom, x, y) in {1: (120, 160, 70, 100), 2: (280, 190, 230, 145)}.items():
        assert drawn[y, right].tolist() == rgb(COLOURS[label - 1])
        assert drawn[bottom, x].tolist() == rgb(COLOURS[label - 1])
        assert drawn[y, x].tolist() == [7, 7, 7]  # Inside.
        assert drawn[bottom + 1, x].tolist() == drawn[y, right + 1].tolist() == [7, 7, 7]  # Outside.


def test_the_input_picture_is_not_changed() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    before = image.copy()
    drawn = drawn_on(image, (10, 10, 50, 50))
    np.testing.assert_array_equal(image, before)
    assert not np.array_equal(drawn, before)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8


def test_a_read_only_picture(tmp_path: Path) -> None:
    """Pillow returns read-only arrays."""
    root = write_banana_folder(tmp_path, 1, 1, side=64)
    image = read_picture(root / "bananas_train" / "images" / "0.png")
    image.flags.writeable = False
    assert drawn_on(image, (10, 10, 50, 50)).shape == (64, 64, 3)


def test_no_boxes_give_a_copy() -> None:
    image = np.full((6, 8, 3), 7, dtype=np.uint8)
    drawn = drawn_on(image)
    np.testing.assert_array_equal(drawn, image)
    drawn[0, 0] = 0
    assert image[0, 0].tolist() == [7, 7, 7]


def written_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the texts that are written on pictures."""
    texts = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda draw, place, text, **look: texts.append(text))
    return texts


def test_class_and_score_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written_on(monkeypatch)
    drawn_on(np.zeros((200, 200, 3), dtype=np.uint8), (1, 50, 80, 80), (20, 120, 90, 180), labels=[2, 1])
    assert texts == ["plantain 0.90", "banana 0.50"]


def test_names_in_any_script_are_written_or_replaced(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    texts = written_on(monkeypatch)
    image, box = np.zeros((200, 200, 3), dtype=np.uint8), np.array([[10, 50, 90, 150]], dtype=np.float32)
    for label in (1, 2, 2):
        draw_boxes(image, box, np.array([label]), np.array([0.5], dtype=np.float32), ["العربية", "\U00100001"])
    # No font has a letter for private use.
    assert texts == ["العربية 0.50", "class 2 0.50", "class 2 0.50"]
    assert [record.message.partition(":")[0] for record in caplog.records] == ["names"], "one remark"


def test_labels_hide_no_box_and_no_label() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 180, (100, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(2, 60, (100, 2))), axis=1).clip(0, 200)
    sizes = np.tile((30.0, 8.0), (100, 1))
    places = [place for place in place_labels(boxes, sizes, (200, 200)) if place]
    assert 3 < len(places) < 100
    labels = np.array([(x, y, x + 30, y + 8) for x, y in places])
    assert labels.min() >= 0
    assert labels.max() <= 200
    shared = np.array([[area(label, box) for box in boxes] for label in labels])
    assert (shared <= 0.1 * np.array([area(box, box) for box in boxes]) + 1e-9).all()
    for n, label in enumerate(labels):
        assert all(area(label, other) == 0 for other in labels[:n])


def area(a: np.ndarray, b: np.ndarray) -> float:
    """Return the area that two boxes share."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def test_a_label_lies_above_its_box_or_where_there_is_room() -> None:
    size = np.array([[30.0, 10.0]])
    for box, place in (
        ((50, 50, 60, 60), (50, 40)),
        ((50, 5, 60, 60), (50, 60)),  # below
        ((195, 50, 199, 60), (170, 40)),
        ((0, 0, 200, 200), (0, 0)),  # inside
    ):
        assert place_labels(np.array([box], dtype=float), size, (200, 200)) == [place]
    assert place_labels(np.array([[50.0, 5.0, 60.0, 60.0]]), size, (65, 25)) == [None]


def test_lines_grow_with_the_picture() -> None:
    def painted_share(side: int) -> float:
        box = (0.2 * side, 0.2 * side, 0.8 * side, 0.8 * side)
        drawn = drawn_on(np.zeros((side, side, 3), dtype=np.uint8), box)
        middle = drawn[side // 2]  # This row crosses the left and the right border.
        return (middle == rgb(COLOURS[0])).all(axis=1).sum() / side

    assert painted_share(1000) == pytest.approx(painted_share(2000))


def test_boxes_at_the_edge_and_tiny_pictures() -> None:
    assert drawn_on(np.zeros((4, 4, 3), dtype=np.uint8), (0, 0, 4, 4), (1, 1, 1, 1)).shape == (4, 4, 3)


def test_more_classes_than_colours() -> None:
    assert [class_colour(label) for label in range(1, 8)] == list(COLOURS)
    assert class_colour(8) == class_colour(1)
    assert len(set(COLOURS)) == 7
    classes = [f"class {number}" for number in range(20)]
    boxes = np.tile(np.array([5, 5, 40, 40], dtype=np.float32), (20, 1))
    drawn = draw_boxes(
        np.zeros((50, 50, 3), dtype=np.uint8), boxes, np.arange(1, 21), np.full(20, 0.5, dtype=np.float32), classes
    )
    assert drawn[39, 39].tolist() == rgb(class_colour(20))


# --- pictures of a data set ---


class GreyPictures:
    def __init__(self, length: int) -> None:
        self.paths = [Path(f"{index}.png") for index in range(length)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        nothing = np.zeros(0, dtype=np.int64)
        image = np.full((30, 40, 3), 10 * index, dtype=np.uint8)
        return Sample(image, np.zeros((0, 4), dtype=np.float32), nothing, nothing.astype(bool))


def detections(*rows: tuple[int, int, float]) -> DetectionRecords:
    """Build detections from rows of picture, label and score; all have the same box."""
    ids, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
    boxes = np.tile(np.array([5, 6, 25, 16], dtype=np.float32), (len(rows), 1))
    return DetectionRecords(
        np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64), boxes, np.array(scores, dtype=np.float32)
    )


def objects(*ids: int) -> ObjectRecords:
    count = len(ids)
    boxes = np.tile(np.array([4, 5, 24, 15], dtype=np.float32), (count, 1))
    return ObjectRecords(
        np.array(ids, dtype=np.int64), np.ones(count, dtype=np.int64), boxes, np.zeros(count, dtype=bool)
    )


def rectangles(figure: Figure, index: int) -> list[tuple[tuple[float, ...], str, str]]:
    """Return the edges, colour and line style of each rectangle on one picture."""
    return [
        (
            (*patch.get_xy(), patch.get_x() + patch.get_width(), patch.get_y() + patch.get_height()),
            matplotlib.colors.to_hex(patch.get_edgecolor()).upper(),
            patch.get_linestyle(),
        )
        for patch in figure.axes[index].patches
    ]


def test_truth_is_dashed_and_detections_are_solid() -> None:
    found = detections((0, 1, 0.9), (0, 2, 0.5), (0, 1, 0.49), (1, 1, 0.8))
    figure = draw_detections(GreyPictures(3), found, objects(0, 2), CLASSES)
    truth = [((4, 5, 24, 15), "#000000", "solid"), ((4, 5, 24, 15), "#FFFFFF", "dashed")]
    assert rectangles(figure, 0) == [
        *truth,
        ((5, 6, 25, 16), COLOURS[1], "solid"),
        ((5, 6, 25, 16), COLOURS[0], "solid"),  # The best is on top.
    ]
    assert [text.get_text() for text in figure.axes[0].texts] == ["banana 0.90", "plantain 0.50"]
    assert rectangles(figure, 1) == [((5, 6, 25, 16), COLOURS[0], "solid")]
    assert rectangles(figure, 2) == truth
    for index in range(3):
        assert (figure.axes[index].images[0].get_array() == 10 * index).all()


def test_the_threshold_can_be_chosen() -> None:
    figure = draw_detections(GreyPictures(1), detections((0, 1, 0.3)), objects(), CLASSES, threshold=0.25)
    assert len(rectangles(figure, 0)) == 1
    assert "0.25" in figure.legends[0].get_texts()[1].get_text()


def test_the_legend_has_colours_of_detections_that_are_drawn() -> None:
    found = detections((0, 2, 0.9), (0, 3, 0.8), (0, 1, 0.2))
    figure = draw_detections(GreyPictures(1), found, objects(), ("a", "b", "c"))
    lines = [line.get_color() for line in figure.legends[0].findobj(Line2D)]
    assert [colour for colour in lines if str(colour).startswith("#")] == [COLOURS[1], COLOURS[2]]
    figure = draw_detections(GreyPictures(1), detections(), objects(0), CLASSES)
    assert figure.legends[0].get_texts()[1].get_text() == "no detection has a score from 0.5"


def test_many_boxes_have_thin_lines_and_labels_that_fit() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 25, (200, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(1, 5, (200, 2))), axis=1).astype(np.float32)
    many = DetectionRecords(np.zeros(200, dtype=int), rng.integers(1, 3, 200), boxes, np.linspace(1, 0.5, 200))
    [ax] = draw_detections(GreyPictures(1), many, objects(), CLASSES).axes
    assert len(ax.patches) == 200
    assert {patch.get_linewidth() for patch in ax.patches} == {0.8}
    assert len(ax.texts) < 100


@pytest.mark.parametrize(
    ("pictures", "count", "chosen"),
    [(1, 12, [0]), (3, 12, [0, 1, 2]), (21, 3, [0, 10, 20]), (5, 5, [0, 1, 2, 3, 4]), (10, 1, [0])],
)
def test_pictures_are_chosen_evenly(pictures: int, count: int, chosen: list[int]) -> None:
    figure = draw_detections(GreyPictures(pictures), detections(), objects(), CLASSES, count=count)
    shown = [int(ax.images[0].get_array()[0, 0, 0]) // 10 for ax in figure.axes if ax.images]
    assert shown == chosen


def test_training_pictures_are_shown_as_the_network_sees_them(tmp_path: Path) -> None:
    root = write_banana_folder(tmp_path, num_train=6, num_val=1, side=64)
    data = DetectionDataModule(Bananas(root), (32, 48), 2, Augmentation([ZoomIn(1.0)], 0.5), num_workers=0)
    data.setup("fit")
    figure = draw_training_pictures(data, count=5)
    loader = data.train_dataloader()
    batches = list(loader)
    images = [image.permute(1, 2, 0).numpy() for batch in batches for image in batch.images][:5]
    boxes = [box for batch in batches for box in batch.objects.boxes[:, 0].numpy()][:5]
    assert len([ax for ax in figure.axes if ax.images]) == 5
    for index, (image, box) in enumerate(zip(images, boxes, strict=True)):
        np.testing.assert_array_equal(figure.axes[index].images[0].get_array(), image)
        [(edges, line_colour, style)] = rectangles(figure, index)
        np.testing.assert_allclose(edges, box * (48, 32, 48, 32), rtol=1e-5)
        assert (line_colour, style) == (COLOURS[0], "solid")


# --- curves ---


def metrics_file(folder: Path, *rows: dict[str, float]) -> Path:
    logger = MetricsFile(folder)
    for step, row in enumerate(rows):
        logger.log_metrics({"epoch": 0, **row}, step=step)
    logger.save()
    return folder / "metrics.csv"


def curves(figure: Figure) -> list[dict[str, list[tuple[float, float]]]]:
    """Return the points of each line by its label, for each of the two axes."""
    return [
        {str(line.get_label()): list(zip(*line.get_data(), strict=True)) for line in ax.lines} for ax in figure.axes
    ]


def test_curves_are_the_numbers_of_the_table(tmp_path: Path) -> None:
    path = metrics_file(
        tmp_path,
        {"train/loss": 4.0, "train/loss_classification": 3.0, "train/loss_localization": 1.0},
        {"train/loss": 2.0},
        {"val/loss": 3.0, "val/map_50": 0.5, "val/map_75": 0.25, "val/map": 0.125},
    )
    losses, scores = curves(draw_curves(path))
    assert losses == {
        "training": [(0, 4.0), (1, 2.0)],
        "… classification": [(0, 3.0)],
        "… localization": [(0, 1.0)],
        "validation": [(2, 3.0)],
    }
    assert scores == {"AP at IoU 0.5": [(2, 0.5)], "AP at IoU 0.75": [(2, 0.25)], "AP, IoU 0.5 to 0.95": [(2, 0.125)]}


def test_a_loss_of_many_steps_is_smoothed_over_a_faint_line(tmp_path: Path) -> None:
    values = np.where(np.arange(100) % 2, 3.0, 1.0)
    losses, _ = draw_curves(metrics_file(tmp_path, *({"train/loss": value} for value in values))).axes
    raw, smooth = losses.lines
    assert raw.get_ydata().tolist() == values.tolist()
    assert raw.get_alpha() < 0.5
    assert smooth.get_ydata()[4:7] == pytest.approx([1.8, 2.2, 1.8])  # means of five values
    assert smooth.get_ydata()[0] == 1.0
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["training, mean of 5 logged steps"]
    assert [smoothing_window(points) for points in (0, 1, 29, 40, 1000)] == [1, 1, 1, 2, 50]


def test_the_axis_of_scores_follows_them(tmp_path: Path) -> None:
    figure = draw_curves(metrics_file(tmp_path, {"val/map": 0.02}, {"val/map": 0.03}))
    low, high = figure.axes[1].get_ylim()
    assert 0.01 < low < 0.02
    assert 0.03 < high < 0.04
    assert score_limits(np.array([0.0, 1.0])) == pytest.approx((-0.02, 1.02))
    assert score_limits(np.array([np.nan])) == (0, 1)


def test_legends_cover_no_curve(tmp_path: Path) -> None:
    figure = draw_curves(metrics_file(tmp_path, *({"train/loss": 2.0, "val/loss": 1.0, "val/map": 0.5},) * 3))
    assert_legends_are_outside(figure)


def test_curves_of_a_run_that_logged_little_or_nothing(tmp_path: Path) -> None:
    assert curves(draw_curves(tmp_path / "metrics.csv")) == [{}, {}]
    losses, scores = curves(draw_curves(metrics_file(tmp_path, {"lr": 0.1}, {"val/map": float("nan")})))
    assert losses == {}
    assert list(scores) == ["AP, IoU 0.5 to 0.95"]


@pytest.mark.parametrize(
    "rows", [[], [{"train/loss": 1.0}], [{"train/loss": 0.0}, {"train/loss": float("inf")}, {"val/map": float("nan")}]]
)
@pytest.mark.filterwarnings("ignore:Data has no positive values")
def test_empty_and_non_finite_curves_can_be_saved(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    figure = draw_curves(metrics_file(tmp_path, *rows))
    save_figure(figure, tmp_path / "new" / "folder" / "curves.png")
    image = read_picture(tmp_path / "new" / "folder" / "curves.png")
    assert image.shape == (468, 1200, 3)  # 10 × 3.9 inches of 120 dots


def test_no_backend_is_chosen(tmp_path: Path) -> None:
    """A notebook keeps its backend, and no window opens."""
    before = matplotlib.rcParams._get_backend_or_none()
    save_figure(draw_detections(GreyPictures(2), detections(), objects(0), CLASSES), str(tmp_path / "a.png"))
    assert matplotlib.rcParams._get_backend_or_none() == before
