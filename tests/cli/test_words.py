"""Words without a key, lists of names, and the help of a command."""

import pytest

from ssd_lightning.cli.commands import BOXES, COMPARE, PREDICT, TRAIN
from ssd_lightning.cli.help import help_text, keys_of
from ssd_lightning.cli.overrides import named, readable
from ssd_lightning.detector.presets import CONFIG_FOLDER


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["best.ckpt", "a.jpg"], ["checkpoint=best.ckpt", "source=a.jpg"]),
        (["best.ckpt", "a b.jpg", "c.jpg"], ["checkpoint=best.ckpt", 'source=["a b.jpg","c.jpg"]']),
        (["best.ckpt"], ["checkpoint=best.ckpt"]),
        (["checkpoint=best.ckpt", "a.jpg"], ["source=a.jpg", "checkpoint=best.ckpt"]),
        (["source=photos", "best.ckpt"], ["checkpoint=best.ckpt", "source=photos"]),
        (["-m", "best.ckpt", "draw_threshold=0.3,0.5"], ["-m", "checkpoint=best.ckpt", "draw_threshold=0.3,0.5"]),
        (["best.ckpt", "photos", "--cfg", "job"], ["checkpoint=best.ckpt", "source=photos", "--cfg", "job"]),
    ],
)
def test_words_take_the_keys_of_their_positions(typed: list[str], meant: list[str]):
    assert named(PREDICT, typed) == meant


def test_words_of_other_commands():
    assert named(COMPARE, ["a", "b"]) == ['runs=["a","b"]']
    assert named(BOXES, ["design", "boxes_budget=5"]) == ["design=true", "boxes_budget=5"]
    assert named(BOXES, ["boxes_budget=5", "design"]) == ["boxes_budget=5", "design=true"]


@pytest.mark.parametrize(("command", "word"), [(TRAIN, "photos"), (BOXES, "desing")])
def test_a_word_that_means_nothing_is_refused(command, word: str):
    with pytest.raises(ValueError, match=rf"^{word}: expected key=value\. Try {command.name} --help\.$"):
        named(command, [word, "seed=1"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("data.classes=[0,1,2]", 'data.classes=["0","1","2"]'),
        ("+data.classes=[yes, null ,1e3,a-b]", '+data.classes=["yes","null","1e3","a-b"]'),
        ("data.classes=[traffic light,苹果]", 'data.classes=["traffic light","苹果"]'),
        ("data.classes=[]", "data.classes=[]"),
        ("data.classes=null", "data.classes=null"),
        ('data.classes=["a,b"]', 'data.classes=["a,b"]'),  # What is quoted is meant for Hydra's grammar.
        ("model.image_size=[320,512]", "model.image_size=[320,512]"),
    ],
)
def test_names_in_lists_are_text_as_typed(typed: str, meant: str):
    assert readable([typed]) == [meant]


def test_help_describes_every_key():
    text = help_text(TRAIN)
    assert "  batch_size=32\n      Number of pictures in a batch, on each device." in text
    for command in (TRAIN, PREDICT, COMPARE):
        undescribed = [key.name for key in keys_of(CONFIG_FOLDER / f"{command.config}.yaml") if not key.about]
        assert set(undescribed) <= {"hydra", "name", "checkpoint", "batch_size", "num_workers", "draw"}


def test_help_of_an_option_lists_its_settings_and_the_other_arguments_of_its_part():
    text = help_text(TRAIN, ["--help", "data=banana_generated"])
    assert "data.root=" in text
    assert "Other arguments of ssd_lightning.GeneratedBananas:" in text
    assert "\n  data.num_train=1000\n" in text
    assert "Keys:" not in text
    assert "Other arguments of torch.optim.SGD" in help_text(TRAIN, ["optimizer=sgd"])


@pytest.mark.parametrize(
    "path", sorted(CONFIG_FOLDER.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}={path.stem}"
)
def test_every_option_has_help(path):
    lines = help_text(TRAIN, [f"{path.parent.name}={path.stem}"]).splitlines()
    assert lines[0].startswith(f"{path.parent.name}={path.stem} - ")
