"""The pictures on which two runs differ most."""

from made_up_sweep import detected
from records import detection_records

from ssd_lightning.records import concatenate, select
from ssd_lightning.review.picture_pairs import picture_pairs
from ssd_lightning.scoring.stored_detections import StoredDetections


class TestPairs:
    def test_the_order_of_the_objects_does_not_matter(self, truth: StoredDetections):
        a, b = detected(truth, 9), detected(truth, 2)
        turned = b._replace(objects=select(b.objects, slice(None, None, -1)))
        assert picture_pairs(a, b) == picture_pairs(a, turned)

    def test_pictures_that_differ_most_come_first(self, truth: StoredDetections):
        a, b = detected(truth, 0), detected(truth, 0)
        # One run has false detections in pictures 4 and 3. Both have one with score 0.55 in the last picture.
        more = detection_records((4, 1, [0, 0, 5, 5], 0.9), (3, 1, [0, 0, 5, 5], 0.7))
        b = b._replace(detections=concatenate([b.detections, more]))
        pairs = picture_pairs(a, b)
        assert [pair.name for pair in pairs.shown] == ["4.png", "3.png"]
        assert pairs.differing == 2
        assert pairs.missing == []
        assert [box.text for box in pairs.shown[0].b.detections if box.cause == "background"] == ["banana 0.90 bkg"]
        assert [pair.name for pair in picture_pairs(a, b, count=1).shown] == ["4.png"]
        assert [pair.name for pair in picture_pairs(a, b, score_threshold=0.8).shown] == ["4.png"]

    def test_texts_are_where_there_is_room(self, truth: StoredDetections):
        a, b = detected(truth, 0), detected(truth, 0)
        # Many small false detections, in one place.
        boxes = [[20 + n % 5, 20 + n // 5, 24 + n % 5, 24 + n // 5] for n in range(30)]
        more = detection_records(*((4, 1, box, 0.6 + n / 100) for n, box in enumerate(boxes)))
        b = b._replace(detections=concatenate([b.detections, more]))
        [pair] = picture_pairs(a, b, count=1).shown
        labels = [box.label for box in pair.b.detections]
        assert len(labels) > 30
        assert 0 < sum(label is not None for label in labels) < 15
        assert all(label is None or 0 < label.baseline < pair.height for label in labels)
        assert all(box.label is None for box in pair.b.objects)
