"""The page that compares runs, read as a browser reads it."""

import base64
import itertools
import json
import re
import shutil
import statistics
import time
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from html_page import Page
from made_up_sweep import CLASSES, detected, write_run, write_sweep
from PIL import Image

from ssd_lightning.records import select
from ssd_lightning.review import write_comparison
from ssd_lightning.review.bootstrap import compare_runs, compare_settings
from ssd_lightning.scoring.stored_detections import StoredDetections, save_detections


@pytest.fixture(scope="module")
def scores(truth: StoredDetections, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """Write a sweep; return its folder, and the APs by loss."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, write_sweep(folder, truth)


@pytest.fixture(scope="module")
def page(scores: tuple[Path, dict]) -> Page:
    write_comparison(scores[0], scores[0] / "comparison.html")
    return Page(scores[0] / "comparison.html")


class TestReport:
    def test_the_page_needs_no_other_file(self, page: Page):
        assert page.links
        assert all(link.startswith(("data:", "#")) for link in page.links)
        assert not re.search(r"https?://|@import|url\((?!#)", page.source)

    def test_figures_have_alternative_texts_and_can_be_decoded(self, page: Page):
        assert all(page.alternatives)
        media = [link.partition(";")[0] for link in page.links if link.startswith("data:")]
        assert {"data:image/jpeg"} < set(media) <= {"data:image/jpeg", "data:image/png", "data:image/svg+xml"}
        for link in page.links:
            if link.startswith("data:image/jpeg"):
                Image.open(BytesIO(base64.b64decode(link.partition(",")[2]))).load()
        assert len(page.ids) == len(set(page.ids))
        assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)

    def test_runs_are_ranked_and_the_best_is_marked(self, page: Page, scores: tuple[Path, dict]):
        rows = page.table("run")
        ranked = sorted(itertools.chain(*scores[1].values()), reverse=True)
        assert [row["AP50"] for row in rows] == [f"{score:.3f}" for score in ranked]
        assert [row["loss"] for row in rows] == ["multibox", "multibox", "focal", "focal"]
        assert {row["status"] for row in rows} == {"finished"}
        assert rows[0]["parameters"] == "1.00 M"
        assert f"Best AP at IoU 0.5: {ranked[0]:.3f}, loss=multibox, seed=0" in page.text
        marked = re.findall(r'class="number best">([\d.]+)<', page.source)
        assert marked[0] == f"{ranked[0]:.3f}"

    def test_seeds(self, page: Page, scores: tuple[Path, dict]):
        for row in page.table("loss"):
            values = scores[1][row["loss"]]
            assert row["seeds"] == "2"
            assert row["AP50"] == f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"

    def test_two_runs_that_differ_in_more_than_the_seed(self, page: Page, scores: tuple[Path, dict]):
        folder = scores[0]
        expected = compare_runs(folder / "2", folder / "0").iloc[-1]
        row = page.table("score")[-1]
        assert row["B − A"] == f"{expected['difference']:+.3f}"
        assert row["95% interval"] == f"{expected['low']:+.3f} … {expected['high']:+.3f}"
        assert row["holds on other pictures"] == "yes"
        assert f"A: loss=focal, seed=0 {folder / '2'}" in page.text
        assert "A is the best run that differs from B in more than the seed." in page.text

    def test_the_headline_compares_settings_over_their_seeds(self, page: Page, scores: tuple[Path, dict]):
        folder = scores[0]
        expected = compare_settings([folder / "2", folder / "3"], [folder / "0", folder / "1"]).iloc[-1]
        interval = f"{expected['low']:+.3f} to {expected['high']:+.3f}"
        verdict = "more" if expected["more than noise"] else "no more"
        assert f"VOC12 AP is {expected['difference']:.3f} higher with loss=multibox (2 seeds)" in page.text
        assert f"than with loss=focal (2 seeds), {verdict} than chance" in page.text
        assert f"in seeds and pictures can explain (95% interval: {interval})." in page.text
        row = page.table("mean score")[-1]
        assert row["B − A"] == f"{expected['difference']:+.3f}"
        assert row["more than noise"] == ("yes" if expected["more than noise"] else "no")

    def test_errors(self, page: Page):
        rows = {row["cause"]: row for row in page.table("cause")}
        assert (rows["missed"]["A: errors"], rows["missed"]["B: errors"]) == ("9", "2")
        assert (rows["background"]["A: errors"], rows["background"]["B: errors"]) == ("1", "1")

    def test_pictures_that_one_run_alone_has_found(self, page: Page):
        assert "Shown: 7 of 7 pictures" in page.text
        sides = re.findall(r'aria-label="(\d+\.png), ([AB]): ([^"]*)"', page.source)
        assert [name for name, _, _ in sides] == [f"{n}.png" for n in range(2, 9) for _ in "AB"]
        assert set(sides[0][2:] + sides[1][2:]) == {"0 found, 1 not found, 0 false", "1 found, 0 not found, 0 false"}

    def test_boxes_are_where_they_were_stored(self, page: Page, truth: StoredDetections):
        left, top, right, bottom = truth.objects.boxes[2].tolist()
        drawn = f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" stroke="#000"/>'
        assert page.source.count(drawn) == 2

    def test_missed_objects_have_a_broad_outline_and_stay_visible(self, page: Page, truth: StoredDetections):
        left, top = truth.objects.boxes[2].tolist()[:2]
        missed = rf'<g fill="none"[^>]*><title>[^<]*not found</title>\s*<rect x="{left}" y="{top}"[^>]*stroke="#000"'
        assert len(re.findall(missed, page.source)) == 1
        assert page.source.count('stroke="#F0E442"') == page.source.count("not found</title>") > 0
        assert "<pattern" not in page.source

    def test_the_same_runs_give_the_same_report(self, page: Page, scores: tuple[Path, dict], tmp_path: Path):
        write_comparison(scores[0], tmp_path / "again.html")
        again = (tmp_path / "again.html").read_text(encoding="utf-8")
        assert re.sub(r"Written [\d: -]*", "", again) == re.sub(r"Written [\d: -]*", "", page.source)

    def test_names_are_no_markup(self, truth: StoredDetections, tmp_path: Path):
        nasty = "<script>alert('1')</script>&amp;$\\frac$"
        stored = truth._replace(classes=(nasty, "b"))
        for number, missed in enumerate((2, 9)):
            config = {"name": f"{nasty}{number}", "note": '"><img src=x onerror=alert(1)>'}
            write_run(tmp_path / f"<b>{number}" / "<i>$x$", detected(stored, missed), config, {})
        write_comparison(tmp_path, tmp_path / "comparison.html")
        page = Page(tmp_path / "comparison.html")
        assert page.tags["script"] == 1
        assert page.tags["i"] == 0
        assert page.tags["img"] == len([link for link in page.links if not link.startswith(("#", "data:image/jpeg"))])
        assert "<b>0/<i>$x$" in page.text
        assert f"name={nasty}0" in page.text
        assert nasty in page.source.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'").replace(
            "&amp;", "&"
        )


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures out of the page: rendering takes most of its time."""
    monkeypatch.setattr("ssd_lightning.review.comparison_figures._image", lambda figure: "data:,")


@pytest.mark.usefixtures("no_figures")
def test_the_score_is_drawn_against_the_objectives_of_a_search(truth: StoredDetections, tmp_path: Path):
    write_sweep(tmp_path, truth, seeds=1)
    summary = json.loads((tmp_path / "0/summary.json").read_text())
    (tmp_path / "0/summary.json").write_text(json.dumps({**summary, "images_per_second": 9.0}))
    (tmp_path / "1/summary.json").unlink()
    (tmp_path / "1/job.json").write_text(json.dumps({"status": "pruned", "reason": "validation 2 was not good enough"}))
    shutil.copytree(tmp_path / "0", tmp_path / "2")
    (tmp_path / "2/summary.json").write_text(json.dumps(summary))

    def figures() -> int:
        write_comparison(tmp_path, tmp_path / "comparison.html")
        return (tmp_path / "comparison.html").read_text().count("The finished runs by score and cost")

    before = figures()
    file = tmp_path / "multirun.yaml"
    file.write_text(yaml.safe_dump({"hydra": {"sweeper": {"objectives": {"map_50": "maximize"}}}}))
    assert figures() == before
    more = {"map_50": "maximize", "images_per_second": "maximize", "unknown": "minimize"}
    file.write_text(yaml.safe_dump({"hydra": {"sweeper": {"objectives": more}}}))
    assert figures() == before + 1
    assert "pruned: validation 2 was not good enough" in Page(tmp_path / "comparison.html").text
    file.write_text("[")
    assert figures() == before


class TestWhatGoesWrong:
    def report(self, folder: Path, **arguments) -> Page:
        write_comparison(folder, folder / "comparison.html", **arguments)
        return Page(folder / "comparison.html")

    def test_runs_without_a_result_have_their_reason(self, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path, truth)
        (tmp_path / "1" / "summary.json").write_text("{")
        (tmp_path / "3" / "summary.json").unlink()
        (tmp_path / "3" / "job.json").write_text(json.dumps({"status": "failed", "reason": "loss is NaN <at> step 3"}))
        page = self.report(tmp_path)
        assert "2 of 4 runs finished (" in page.text
        assert "3 failed: loss is NaN <at> step 3" in page.text
        assert "1 broken: summary.json: Expecting" in page.text
        assert "1 cannot be read: summary.json: Expecting" in page.text
        assert [row["status"] for row in page.table("run")][:2] == ["finished", "finished"]

    def test_missing_pictures_are_reported(self, truth: StoredDetections, tmp_path: Path):
        shutil.copytree(Path(truth.paths[0]).parent, tmp_path / "images")
        moved = truth._replace(paths=tuple(str(tmp_path / "images" / Path(path).name) for path in truth.paths))
        write_sweep(tmp_path / "sweep", moved)
        (tmp_path / "images" / "3.png").unlink()
        page = self.report(tmp_path / "sweep")
        assert "Shown: 6 of 7 pictures" in page.text
        reason = "Not shown, because the files cannot be read any more"
        assert f"{reason}: 1 pictures that differ more: {tmp_path}" in page.text
        shutil.rmtree(tmp_path / "images")
        page = self.report(tmp_path / "sweep")
        assert page.tags["svg"] == 0
        assert "7 pictures that differ: " in page.text

    def test_pictures_are_read_from_the_path_of_the_other_run(self, truth: StoredDetections, tmp_path: Path):
        gone = truth._replace(paths=tuple(f"/gone/{Path(path).name}" for path in truth.paths))
        write_run(tmp_path / "a", detected(gone, 9), {"seed": 0}, {})
        write_run(tmp_path / "b", detected(truth, 2), {"seed": 1}, {})
        assert self.report(tmp_path).tags["svg"] == 14

    @pytest.mark.slow
    def test_runs_on_other_pictures_are_not_paired(self, truth: StoredDetections, tmp_path: Path):
        other = truth._replace(paths=tuple(path.replace(".png", "_.png") for path in truth.paths))
        write_run(tmp_path / "best", detected(other, 0), {"lr": 1}, {})
        write_run(tmp_path / "good", detected(truth, 2), {"lr": 2}, {})
        page = self.report(tmp_path)
        assert "No two finished runs were scored on the same validation pictures with the same classes." in page.text
        assert "scored on 2 different sets of validation pictures" in page.text
        assert [row["pictures"] for row in page.table("run")] == ["1", "2"]
        write_run(tmp_path / "bad", detected(truth, 9), {"lr": 3}, {})
        page = self.report(tmp_path)
        assert "B is the best run that can be compared, and A is the best of the other runs." in page.text
        assert f"B: lr=2 {tmp_path / 'good'}" in page.text
        page = self.report(tmp_path, baseline=tmp_path / "best")
        assert "No other finished run was scored on the validation pictures of the baseline." in page.text

    def test_the_same_names_with_other_boxes_are_not_paired(self, truth, tmp_path: Path):
        moved = truth._replace(objects=truth.objects._replace(boxes=truth.objects.boxes + 5))
        for name, stored in (("a", truth), ("b", moved)):
            write_run(tmp_path / name, detected(stored, 2), {"name": name}, {})
        page = self.report(tmp_path)
        assert "No two finished runs were scored on the same validation pictures" in page.text
        assert [row["pictures"] for row in page.table("run")] == ["1", "2"]

    def test_damaged_detections(self, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path, truth, seeds=1)
        (tmp_path / "0" / "detections.npz").write_bytes(b"PK")
        page = self.report(tmp_path)
        assert "Fewer than two finished runs have the score and stored detections." in page.text
        assert "1 of 2 runs finished (1 broken)" in page.text
        assert "0 cannot be read: detections.npz" in page.text

    def test_a_score_that_only_one_run_has(self, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path, truth)
        for number in "123":
            summary = json.loads((tmp_path / number / "summary.json").read_text())
            del summary["scores"]["val/map"]
            (tmp_path / number / "summary.json").write_text(json.dumps(summary))
        page = self.report(tmp_path, score="map")
        assert [row["AP"] != "" for row in page.table("run")] == [True, False, False, False]
        assert "Fewer than two finished runs have the score and stored detections" in page.text

    def test_one_run_alone_and_runs_that_are_alike(self, truth: StoredDetections, tmp_path: Path):
        write_run(tmp_path / "a", detected(truth, 2), {}, {})
        assert "1 runs compared" not in self.report(tmp_path).text
        write_run(tmp_path / "b", detected(truth, 2), {}, {})
        page = self.report(tmp_path)
        assert "The runs differ on no picture." in page.text
        assert "No setting differs between the runs." in page.text

    def test_with_one_seed_each_no_setting_is_called_better(self, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path, truth, seeds=1)
        page = self.report(tmp_path)
        assert "VOC12 AP of the trained network with loss=multibox is" in page.text
        assert "the effect of another seed is unknown" in page.text
        assert "more than chance" not in page.text
        assert {row["more than noise"] for row in page.table("mean score")} == {"unknown"}

    def test_two_seeds_of_one_setting_are_two_networks(self, truth: StoredDetections, tmp_path: Path):
        for seed, missed in enumerate((2, 9)):
            write_run(tmp_path / str(seed), detected(truth, missed), {"seed": seed}, {})
        page = self.report(tmp_path)
        assert "VOC12 AP of the trained network with seed=0 is" in page.text
        assert "The two runs have the same settings." in page.text
        assert "more than chance" not in page.text

    def test_repetitions_of_a_seed_count_once(self, truth: StoredDetections, tmp_path: Path):
        for number, (lr, seed, missed) in enumerate(((1, 0, 2), (1, 0, 2), (1, 1, 3), (2, 0, 9), (2, 0, 9))):
            write_run(tmp_path / str(number), detected(truth, missed), {"lr": lr, "seed": seed}, {})
        assert "with lr=1 (2 seeds) than with lr=2 (1 seed)," in self.report(tmp_path).text

    def test_runs_with_the_same_settings_have_their_folder_in_the_label(self, truth, tmp_path: Path):
        for name, lr, missed in (("a", 1, 2), ("b", 1, 3), ("c", 2, 9)):
            write_run(tmp_path / name, detected(truth, missed), {"lr": lr}, {})
        page = self.report(tmp_path)
        assert f"B: lr=1 (a) {tmp_path / 'a'}" in page.text
        assert f"A: lr=2 {tmp_path / 'c'}" in page.text

    def test_settings_that_are_many_come_after_the_scores(self, truth: StoredDetections, tmp_path: Path):
        for number in (1, 2):
            config = {f"setting{key}": number for key in range(5)}
            write_run(tmp_path / str(number), detected(truth, number), config, {})
        titles = list(self.report(tmp_path).table("run")[0])
        assert titles[:3] == ["run", "status", "AP50"]
        assert titles[-5:] == [f"setting{key}" for key in range(5)]

    def test_without_any_picture_or_object(self, tmp_path: Path, truth: StoredDetections):
        nothing = StoredDetections(
            truth.detections,
            select(truth.objects, slice(0)),
            (),
            CLASSES,
        )
        for name in "ab":
            write_run(tmp_path / name, detected(truth, 2), {"name": name}, {})
            save_detections(tmp_path / name / "detections.npz", *nothing)
        assert "The validation pictures hold no object that counts." in self.report(tmp_path).text
        for name in "ab":
            no_object = detected(truth, 2)._replace(objects=nothing.objects)
            save_detections(tmp_path / name / "detections.npz", *no_object)
        assert "The validation pictures hold no object that counts." in self.report(tmp_path).text


def test_many_runs_take_seconds_and_fit_in_a_few_megabytes(truth: StoredDetections, tmp_path: Path):
    write_sweep(tmp_path, truth, seeds=20)
    begun = time.process_time()
    write_comparison(tmp_path, tmp_path / "comparison.html")
    assert time.process_time() - begun < 15  # 2 on an idle machine.
    assert (tmp_path / "comparison.html").stat().st_size < 2_000_000
    assert len(Page(tmp_path / "comparison.html").table("run")) == 40
