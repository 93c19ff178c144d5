"""Published weights by name: what is downloaded from where, and the detector that they make."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import QUICK
from http_server import Server, sending, serving, unreachable_url
from PIL import Image
from torchvision.models.detection import (
    SSD300_VGG16_Weights,
    SSDLite320_MobileNet_V3_Large_Weights,
    ssd300_vgg16,
    ssdlite320_mobilenet_v3_large,
)

from ssd_lightning.data.download import DownloadError
from ssd_lightning.detector import presets
from ssd_lightning.detector.presets import PUBLISHED
from ssd_lightning.training.checkpoint import load_detector
from ssd_lightning.training.pretrained import weights_file

SSDLITE = "ssdlite320_mobilenet_v3_large_coco"
THEIRS = {
    "ssd300_vgg16_coco": (SSD300_VGG16_Weights.COCO_V1, ssd300_vgg16),
    SSDLITE: (SSDLite320_MobileNet_V3_Large_Weights.COCO_V1, ssdlite320_mobilenet_v3_large),
}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights in torchvision's layout, with the outputs of COCO."""
    torch.manual_seed(0)
    return ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).state_dict()


@pytest.fixture
def served(state, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server in place of torchvision's, which has this file; and an empty folder for downloads."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with serving() as server:
        server.default = sending(content)
        entry = PUBLISHED[SSDLITE]._replace(
            url=server.url("/fake-0123.pth"), sha256=hashlib.sha256(content).hexdigest()[:8]
        )
        monkeypatch.setitem(presets.PUBLISHED, SSDLITE, entry)
        yield server


@pytest.mark.parametrize("name", list(THEIRS))
def test_addresses_hashes_and_post_processing_are_those_of_torchvision(name: str):
    weights, make = THEIRS[name]
    entry = PUBLISHED[name]
    assert set(PUBLISHED) == set(THEIRS)
    assert entry.url == weights.url
    assert weights.url.endswith(f"-{entry.sha256}.pth")
    with torch.device("meta"):
        theirs = make(weights=None, weights_backbone=None)
    from ssd_lightning import PostProcess

    ours = PostProcess(**entry.postprocess)
    assert ours.score_threshold == theirs.score_thresh
    assert ours.nms_threshold == theirs.nms_thresh
    assert ours.candidates_per_class == theirs.topk_candidates
    assert ours.max_detections == theirs.detections_per_img


def test_a_detector_by_name_is_downloaded_once_and_has_the_classes_of_coco(served: Server, state, tmp_path: Path):
    file = weights_file(SSDLITE, "pretrained")
    detector = load_detector(SSDLITE, {"max_detections": 7})
    assert served.requests == ["/fake-0123.pth"]
    assert file == tmp_path / "home/hub/checkpoints/fake-0123.pth"
    assert len(detector.classes) == 80
    assert (detector.classes[0], detector.classes[-1]) == ("person", "toothbrush")
    assert (detector.postprocess.max_detections, detector.postprocess.nms_threshold) == (7, 0.55)
    # COCO's category ids of background, person, stop sign and toothbrush, and the labels of the 80 classes.
    theirs = state["head.classification_head.module_list.0.1.bias"].view(6, 91)[:, [0, 1, 13, 90]]
    own = detector.model.state_dict()["head.classification.0.1.bias"].view(6, 81)[:, [0, 1, 12, 80]]
    torch.testing.assert_close(own, theirs, rtol=0, atol=0)


def test_another_file_than_the_published_is_refused(served: Server, tmp_path: Path):
    served.default = sending(b"rubbish")
    with pytest.raises(DownloadError) as caught:
        weights_file(SSDLITE, "pretrained")
    for part in ("pretrained: ", served.url("/fake-0123.pth"), PUBLISHED[SSDLITE].sha256, "hash"):
        assert part in str(caught.value)
    assert not list((tmp_path / "home").rglob("*.pth"))


def test_without_a_network_the_message_says_which_file_to_put_where(served: Server, run, tmp_path: Path, monkeypatch):
    url = unreachable_url("/fake-0123.pth")
    monkeypatch.setitem(presets.PUBLISHED, SSDLITE, PUBLISHED[SSDLITE]._replace(url=url))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    outcome = run("ssd-predict", SSDLITE, "x.png")
    assert outcome.exit_code == 1
    assert "Traceback" not in outcome.error
    assert outcome.error.startswith("ssd-predict: checkpoint: ")
    assert url in outcome.error
    advice = f"put fake-0123.pth (sha256:{PUBLISHED[SSDLITE].sha256}) into {tmp_path}/home/hub/checkpoints"
    assert advice in outcome.error


@pytest.mark.parametrize(("typed", "first"), [("ssd300_vgg16", "ssd300_vgg16_coco"), ("ssdlite320_coco", SSDLITE)])
def test_a_wrong_name_lists_the_names_with_the_nearest_first(typed: str, first: str):
    with pytest.raises(ValueError, match=f"^pretrained: .* one of {first}, .* got {typed}, which does not exist"):
        weights_file(typed, "pretrained")


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}, "", 7, None])
def test_a_value_that_is_no_text(value: object):
    with pytest.raises(ValueError, match=r"^pretrained: expected a file, a run folder or one of ssd300_vgg16_coco, "):
        weights_file(value, "pretrained")


def test_a_training_by_name_chooses_the_model(served: Server, run, bananas: Path, monkeypatch):
    def stop(*_: object) -> None:
        raise ValueError("enough")

    monkeypatch.setattr("ssd_lightning.cli.train.build_trainer", stop)
    quick = [setting for setting in QUICK if not setting.startswith("model.")]
    outcome = run("ssd-train", f"pretrained={SSDLITE}", "data=banana", f"data.root={bananas}", *quick)
    assert outcome.message == "ssd-train: enough"
    assert "fake-0123.pth (torchvision SSDLite320)" in outcome.out
    assert "classes by name: banana" in outcome.out
    assert served.requests == ["/fake-0123.pth"]


def test_predicting_by_name_needs_no_training(served: Server, run, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    outcome = run("ssd-predict", SSDLITE, "x.png", "hydra.run.dir=out", "num_workers=0", "draw=false")
    assert outcome.exit_code == 0, outcome.error
    assert f"Weights: {tmp_path}/home/hub/checkpoints/fake-0123.pth\n" in outcome.out
    assert '"name": "toothbrush"' in (tmp_path / "out/predictions.json").read_text()


def test_scoring_by_name_needs_data(served: Server, run):
    outcome = run("ssd-evaluate", SSDLITE)
    assert outcome.exit_code == 1
    assert "data=" in outcome.message
    assert "fake-0123.pth" in outcome.message
