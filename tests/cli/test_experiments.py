"""Recipes: all of them train two steps of their own network, on a very small VOC."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from voc_xml import write_picture, write_xml

RECIPES = (
    pytest.param("ssd300_vgg16_voc0712", marks=pytest.mark.slow),
    pytest.param("ssdlite320_mobilenet_v3_voc0712", marks=pytest.mark.slow),
    "ssdlite_mobilenet_v2_finetune",
    pytest.param("ssd300_vgg16_voc07", marks=pytest.mark.slow),
    pytest.param("ssdlite320_mobilenet_v2_voc07", marks=pytest.mark.slow),
    pytest.param("ssd512_vgg16_voc0712", marks=pytest.mark.slow),
    pytest.param("ssd512_resnet34_voc0712", marks=pytest.mark.slow),
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC with four pictures of each year for training, and two of 2007 for scoring."""
    root = tmp_path_factory.mktemp("data")
    for year, name, count in (("2007", "trainval", 4), ("2007", "test", 2), ("2012", "trainval", 4)):
        folder = root / "VOCdevkit" / f"VOC{year}"
        stems = [f"{year}_{name}_{number}" for number in range(count)]
        for stem in stems:
            write_picture(folder / "JPEGImages" / f"{stem}.jpg", 120, 90)
            objects = [("person", 10, 10, 60, 80), ("dog", 50, 40, 110, 85)]
            write_xml(folder / "Annotations" / f"{stem}.xml", objects, difficult=[0, 1], filename=f"{stem}.jpg")
        lists = folder / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{name}.txt").write_text("\n".join(stems))
    return root


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_steps(run, data_dir: Path, tmp_path: Path, recipe: str):
    is_own_folder = recipe.endswith("finetune")
    where = f"data.root={data_dir / 'VOCdevkit' / 'VOC2007'}" if is_own_folder else f"data_dir={data_dir}"
    # Batch norm needs two pictures, and VGG is without it.
    batch_size = 1 if "vgg16" in recipe else 2
    quick = [
        "trainer=cpu",
        "++trainer.max_steps=2",
        f"batch_size={batch_size}",
        "num_workers=0",
        "backbone.weights=null",
    ]
    outcome = run("ssd-train", f"experiment={recipe}", where, *quick, "hydra.run.dir=run")
    assert outcome.exit_code == 0, outcome.error
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["name"] == recipe
    assert len(summary["classes"]) == (2 if is_own_folder else 20)
    if is_own_folder:  # The classes that were found are written down.
        kept = OmegaConf.load(tmp_path / "run" / ".hydra" / "config.yaml")
        assert kept.data.classes == summary["classes"] == ["dog", "person"]
    assert (summary["train_pictures"], summary["val_pictures"]) == (8 if "0712" in recipe else 4, 2)
