"""``ssd-compare`` and its report, read as a browser reads it."""

import base64
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_sweep import CLASSES, detected, truth_of, write_run, write_sweep
from PIL import Image

from ssd_lightning.review import write_comparison
from ssd_lightning.review.bootstrap import compare_classes, compare_runs, draw_class_differences
from ssd_lightning.review.picture_pairs import picture_pairs
from ssd_lightning.review.settings import over_seeds
from ssd_lightning.scoring.stored_detections import StoredDetections, save_detections
from ssd_lightning.structures import ObjectRecords

VOID = {"meta", "img", "wbr", "br", "hr", "input", "link"}
"""Elements that have no end."""


class Page(HTMLParser):
    """Elements and texts, and whether every element ends where it should."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.alternatives: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self._texts: list[str] = []
        self.feed(self.source)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags[tag] += 1
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        self.ids += [value or "" for name, value in attributes if name == "id"]
        if tag in ("img", "svg"):
            self.alternatives.append(values.get("alt") or values.get("aria-label") or "")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self._texts.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self._texts).split())

    def table(self, first_title: str) -> list[dict[str, str]]:
        """The rows, by the titles of their columns."""
        [found] = [rows for rows in self.tables if rows[0][0] == first_title]
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> StoredDetections:
    return truth_of(tmp_path_factory.mktemp("data") / "bananas")


@pytest.fixture(scope="module")
def scores(truth: StoredDetections, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """The folder of a sweep, and its AP by loss."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, write_sweep(folder, truth)


@pytest.fixture(scope="module")
def page(scores: tuple[Path, dict]) -> Page:
    write_comparison(scores[0], scores[0] / "comparison.html")
    return Page(scores[0] / "comparison.html")


class TestReport:
    def test_nothing_is_loaded_from_elsewhere(self, page: Page):
        assert page.links
        assert all(link.startswith(("data:", "#")) for link in page.links)
        assert not re.search(r"https?://|@import|url\((?!#)", page.source)

    def test_every_figure_is_told_in_words_and_can_be_read(self, page: Page):
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
        assert row["95% of the draws"] == f"{expected['low']:+.3f} … {expected['high']:+.3f}"
        assert row["more than noise"] == "yes"
        assert f"A: loss=focal, seed=0 {folder / '2'}" in page.text
        assert "A the best that differs from it in more than the seed." in page.text

    def test_errors(self, page: Page):
        rows = {row["cause"]: row for row in page.table("cause")}
        assert (rows["missed"]["A: errors"], rows["missed"]["B: errors"]) == ("9", "2")
        assert (rows["background"]["A: errors"], rows["background"]["B: errors"]) == ("1", "1")

    def test_pictures_that_one_run_alone_has_found(self, page: Page):
        assert "7 of 7 pictures on which the two differ" in page.text
        told = re.findall(r'aria-label="(\d+\.png), ([AB]): ([^"]*)"', page.source)
        assert [name for name, _, _ in told] == [f"{n}.png" for n in range(2, 9) for _ in "AB"]
        assert set(told[0][2:] + told[1][2:]) == {"0 found, 1 not found, 0 false", "1 found, 0 not found, 0 false"}

    def test_boxes_are_where_they_were_stored(self, page: Page, truth: StoredDetections):
        left, top, right, bottom = truth.objects.boxes[2].tolist()
        drawn = f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" stroke="#000"/>'
        assert page.source.count(drawn) == 2

    def test_the_same_runs_give_the_same_report(self, page: Page, scores: tuple[Path, dict], tmp_path: Path):
        write_comparison(scores[0], tmp_path / "again.html")
        again = (tmp_path / "again.html").read_text(encoding="utf-8")
        assert re.sub(r"Written [\d: -]*", "", again) == re.sub(r"Written [\d: -]*", "", page.source)


class TestCommand:
    def test_writes_one_file_and_tells_the_most_important(self, run, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path / "sweep", truth)
        outcome = run("ssd-compare", "runs=sweep", "hydra.run.dir=out")
        assert outcome.exit_code == 0, outcome.error
        assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".html"] == ["comparison.html"]
        lines = outcome.out.splitlines()
        assert lines[0] == "4 of 4 runs finished."
        assert re.match(r"VOC12 AP is 0\.\d+ higher with loss=multibox than with loss=focal, more than luck", lines[2])
        assert re.match(r"Of the settings, loss explains most by itself: \d+% of the variance over 4 runs", lines[3])
        assert lines[-2] == f"Results: {tmp_path / 'out'} (open comparison.html in a browser)"
        assert lines[-1].startswith(f"Next:    ssd-predict checkpoint={tmp_path}/sweep/0/checkpoints/best.ckpt source=")
        assert Page(tmp_path / "out" / "comparison.html").tags["svg"] == 14

    def test_a_report_is_never_overwritten(self, run, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path / "sweep", truth)
        assert run("ssd-compare", "runs=sweep", "hydra.run.dir=out", "pictures=0").exit_code == 0
        before = (tmp_path / "out" / "comparison.html").read_bytes()
        outcome = run("ssd-compare", "runs=[sweep/0,sweep/1]", "hydra.run.dir=out")
        assert outcome.exit_code == 1
        assert "holds a run already; choose another folder" in outcome.error
        assert (tmp_path / "out" / "comparison.html").read_bytes() == before

    def test_some_runs_and_a_baseline_from_elsewhere(self, run, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path / "sweep", truth)
        write_run(tmp_path / "old", detected(truth, 5), {"loss": {"_target_": "losses.old"}}, {"loss": "old"})
        outcome = run("ssd-compare", "runs=[sweep/2,sweep/3]", "baseline=old", "hydra.run.dir=out")
        assert outcome.exit_code == 0, outcome.error
        page = Page(tmp_path / "out" / "comparison.html")
        assert len(page.table("run")) == 3
        assert "A is the baseline, B the best of the other runs." in page.text
        assert float(page.table("score")[-1]["B − A"]) < 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Missing mandatory value: runs"),
            (["runs=nowhere"], "folders: expected folders with runs, got"),
            (["runs=empty"], "folders: expected runs of ssd-train, found none in"),
            (["runs=[]"], "runs: expected a folder or a list of folders, got []"),
            (["runs=null"], "runs: expected a folder or a list of folders, got None"),
            (["runs={a:1}"], "runs: expected a folder or a list of folders, got {'a': 1}"),
            (["runs={a: b}"], "runs: expected a folder or a list of folders, got"),
            (["runs=sweep", "score=recall"], "score: expected a column of numbers, one of"),
            (["runs=sweep", "baseline=sweep"], "baseline: expected the folder of one run, got"),
            (["runs=sweep", "baseline=begun"], "baseline: expected a finished run with its score and detections.npz"),
            (["runs=sweep", "iou_threshold=0"], "iou_threshold: expected a number in (0, 1], got 0"),
            (["runs=sweep", "draw_threshold=high"], "draw_threshold: expected a number in [0, 1], got high"),
            (["runs=sweep", "pictures=-1"], "pictures: expected a whole number of at least 0, got -1"),
            (["runs=begun"], "runs: expected at least one with scores, got begun unfinished"),
        ],
    )
    def test_mistakes_are_told_in_a_line(self, run, truth, tmp_path: Path, arguments: list[str], message: str):
        write_sweep(tmp_path / "sweep", truth, seeds=1)
        write_run(tmp_path / "begun", None, {}, {})
        (tmp_path / "empty").mkdir()
        outcome = run("ssd-compare", *arguments, "hydra.run.dir=out")
        assert outcome.exit_code == 1
        # The first is Hydra's, and names the arguments.
        assert outcome.error.splitlines()[-1].startswith(f"ssd-compare: {message}")
        assert len(outcome.error.splitlines()) <= 2
        assert not (tmp_path / "out").exists()

    def test_help_is_quick(self):
        program = (
            "import sys; sys.argv = ['ssd-compare', '--help']; from ssd_lightning.cli.commands import compare; compare();"
            "assert not {'torch', 'lightning', 'matplotlib', 'pandas'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("ssd-compare - ")
        assert "runs=(required)" in done.stdout


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
        assert [row["status"] for row in page.table("run")][:2] == ["finished", "finished"]

    def test_names_are_no_markup(self, truth: StoredDetections, tmp_path: Path):
        nasty = "<script>alert('1')</script>&amp;$\\frac$"
        stored = truth._replace(classes=(nasty, "b"))
        for number, missed in enumerate((2, 9)):
            config = {"name": f"{nasty}{number}", "note": '"><img src=x onerror=alert(1)>'}
            write_run(tmp_path / f"<b>{number}" / "<i>$x$", detected(stored, missed), config, {})
        page = self.report(tmp_path)
        assert page.tags["script"] == 1
        assert page.tags["i"] == 0
        assert page.tags["img"] == len([link for link in page.links if not link.startswith(("#", "data:image/jpeg"))])
        assert "<b>0/<i>$x$" in page.text
        assert f"name={nasty}0" in page.text
        assert nasty in page.source.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'").replace(
            "&amp;", "&"
        )

    def test_pictures_that_are_gone_are_told(self, truth: StoredDetections, tmp_path: Path):
        shutil.copytree(Path(truth.paths[0]).parent, tmp_path / "images")
        moved = truth._replace(paths=tuple(str(tmp_path / "images" / Path(path).name) for path in truth.paths))
        write_sweep(tmp_path / "sweep", moved)
        (tmp_path / "images" / "3.png").unlink()
        page = self.report(tmp_path / "sweep")
        assert "6 of 7 pictures on which the two differ" in page.text
        assert f"1 that differ more are not shown, since they are no longer where they were: {tmp_path}" in page.text
        shutil.rmtree(tmp_path / "images")
        page = self.report(tmp_path / "sweep")
        assert page.tags["svg"] == 0
        assert "7 that differ are not shown" in page.text

    def test_pictures_of_the_other_run_do(self, truth: StoredDetections, tmp_path: Path):
        gone = truth._replace(paths=tuple(f"/gone/{Path(path).name}" for path in truth.paths))
        write_run(tmp_path / "a", detected(gone, 9), {"seed": 0}, {})
        write_run(tmp_path / "b", detected(truth, 2), {"seed": 1}, {})
        assert self.report(tmp_path).tags["svg"] == 14

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
        assert "B is the best run that has another to compare with, A the best of the others." in page.text
        assert f"B: lr=2 {tmp_path / 'good'}" in page.text
        page = self.report(tmp_path, baseline=tmp_path / "best")
        assert "No other finished run was scored on the validation pictures of the baseline." in page.text

    def test_pictures_of_the_same_names_with_other_boxes_are_not_paired(self, truth, tmp_path: Path):
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
        assert "compared with no other on their pictures: 0" in page.text

    def test_scores_that_all_but_one_run_lack(self, truth: StoredDetections, tmp_path: Path):
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
        assert "They differ on no picture." in page.text
        assert "No setting differs between them." in page.text

    def test_runs_with_the_same_settings_are_told_apart_by_their_folders(self, truth, tmp_path: Path):
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
            type(truth.detections)(*(column[:0] for column in truth.detections)),
            ObjectRecords(*(column[:0] for column in truth.objects)),
            (),
            CLASSES,
        )
        for name in "ab":
            write_run(tmp_path / name, detected(truth, 2), {"name": name}, {})
            save_detections(tmp_path / name / "detections.npz", *nothing)
        assert "There is no object in the pictures that they were scored on." in self.report(tmp_path).text
        for name in "ab":
            no_object = detected(truth, 2)._replace(objects=nothing.objects)
            save_detections(tmp_path / name / "detections.npz", *no_object)
        assert "There is no object in the pictures that they were scored on." in self.report(tmp_path).text


def test_a_hundred_runs_take_seconds_and_fit_in_a_few_megabytes(truth: StoredDetections, tmp_path: Path):
    write_sweep(tmp_path, truth, seeds=50)
    begun = time.process_time()
    write_comparison(tmp_path, tmp_path / "comparison.html")
    assert time.process_time() - begun < 20  # 5 when nobody else is there
    assert (tmp_path / "comparison.html").stat().st_size < 2_000_000
    assert len(Page(tmp_path / "comparison.html").table("run")) == 100


class TestOverSeeds:
    def table(self, **columns: list) -> pd.DataFrame:
        return pd.DataFrame({**columns, "status": "finished", "map_50": [0.1, 0.3, 0.5, 0.9]})

    def test_known(self):
        runs = self.table(loss=["a", "a", "b", "b"], seed=[0, 1, 0, 1])
        runs.loc[3, "status"] = "failed: x"
        found = over_seeds(runs, ["map_50"])
        assert list(found.columns) == ["loss", "seeds", "map_50", "map_50 std"]
        assert found.iloc[0].tolist() == ["a", 2, pytest.approx(0.2), pytest.approx(statistics.stdev([0.1, 0.3]))]
        assert found.iloc[1].tolist()[:3] == ["b", 1, 0.5]
        assert np.isnan(found["map_50 std"].iloc[1])

    def test_the_seed_alone_and_settings_that_some_lack(self):
        assert over_seeds(self.table(seed=[0, 1, 2, 3]), ["map_50"])["map_50"].tolist() == [pytest.approx(0.45)]
        found = over_seeds(self.table(ema=[np.nan, np.nan, 0.9, 0.9], seed=[0, 1, 0, 1]), ["map_50"])
        assert found["seeds"].tolist() == [2, 2]

    def test_refusals(self):
        with pytest.raises(ValueError, match="runs: expected some that differ in seed, they differ in loss"):
            over_seeds(self.table(loss=list("abcd")))
        with pytest.raises(ValueError, match="scores: expected columns of the table, got 'map'"):
            over_seeds(self.table(seed=[0, 1, 2, 3]))


class TestClasses:
    def test_of_one_class_it_is_what_comparing_runs_says(self, tmp_path: Path, truth: StoredDetections):
        one = truth._replace(classes=("banana",), objects=truth.objects._replace(labels=np.ones(24, dtype=int)))
        a, b = detected(one, 9), detected(one, 2, seed=1)
        for name, stored in (("a", a), ("b", b)):
            save_detections(tmp_path / f"{name}.npz", *stored)
        expected = compare_runs(tmp_path / "a.npz", tmp_path / "b.npz").loc["VOC12 AP"]
        found = compare_classes(a, b).loc["banana"]
        assert found["objects"] == 24
        columns = ["a", "b", "difference", "low", "high", "more than noise"]
        assert found[columns].tolist() == expected[columns].tolist()

    def test_each_class_for_itself(self, truth: StoredDetections):
        # The missing objects are those of pictures 0, 2, 4, … of the first class alone.
        a = detected(truth, 0)
        rows = (a.detections.labels != 1) | (a.detections.image_ids >= 12)
        b = a._replace(detections=type(a.detections)(*(column[rows] for column in a.detections)))
        table = compare_classes(a, b)
        assert table["more than noise"].tolist() == [True, False]
        assert table.loc["banana", "high"] < 0
        assert table.loc["plantain", ["difference", "low", "high"]].tolist() == [0, 0, 0]

    def test_classes_without_objects_are_left_out(self, truth: StoredDetections):
        three = detected(truth, 2)._replace(classes=(*CLASSES, "never there"))
        assert compare_classes(three, three, resamples=5).index.tolist() == list(CLASSES)

    def test_other_pictures_are_refused(self, truth: StoredDetections):
        with pytest.raises(
            ValueError, match="b: expected the pictures and objects of a, 24 with 24 of 2 classes, got 23"
        ):
            compare_classes(truth, truth._replace(paths=truth.paths[1:]))

    def test_figure(self, truth: StoredDetections):
        table = compare_classes(detected(truth, 9), detected(truth, 2), resamples=50)
        ax = draw_class_differences(table).axes[0]
        assert [text.get_text() for text in ax.get_yticklabels()] == table.sort_values(
            "difference", ascending=False
        ).index.tolist()
        low, high = ax.get_xticks().min(), ax.get_xticks().max()
        assert low < 0 < high


class TestPairs:
    def test_the_order_of_the_objects_in_the_other_file_does_not_matter(self, truth: StoredDetections):
        a, b = detected(truth, 9), detected(truth, 2)
        turned = b._replace(objects=ObjectRecords(*(column[::-1] for column in b.objects)))
        assert picture_pairs(a, b) == picture_pairs(a, turned)

    def test_those_that_differ_most_come_first(self, truth: StoredDetections):
        a, b = detected(truth, 0), detected(truth, 0)
        # False detections of one run in pictures 4 and 3, and in both runs one with 0.55 in the last.
        more = type(b.detections)([4, 3], [1, 1], np.float32([[0, 0, 5, 5]] * 2), np.float32([0.9, 0.7]))
        columns = zip(b.detections, more, strict=True)
        b = b._replace(detections=type(b.detections)(*(np.concatenate(pair) for pair in columns)))
        pairs = picture_pairs(a, b)
        assert [pair.name for pair in pairs.shown] == ["4.png", "3.png"]
        assert pairs.differing == 2
        assert pairs.missing == []
        assert [box.text for box in pairs.shown[0].b.detections if box.cause == "background"] == ["banana 0.90 bkg"]
        assert [pair.name for pair in picture_pairs(a, b, count=1).shown] == ["4.png"]
        assert [pair.name for pair in picture_pairs(a, b, score_threshold=0.8).shown] == ["4.png"]
