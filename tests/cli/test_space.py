"""Search spaces in Hydra's grammar."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ssd_lightning.cli.sweep.space import Space, read_space

CONFIG = OmegaConf.create({"optimizer": {"lr": 0.1}, "scales": [0.1, 0.2, 0.3], "text": "a"})


def read(*arguments: str, **params: object) -> Space:
    return read_space(CONFIG, params, arguments, OverridesParser.create())


@pytest.mark.parametrize(
    ("value", "distribution"),
    [
        ("interval(0.1, 2)", FloatDistribution(0.1, 2)),
        ("interval(1, 2)", FloatDistribution(1, 2)),
        ("tag(log, interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(1, 8))", IntDistribution(1, 8)),
        ("tag(log,int(interval(1, 8)))", IntDistribution(1, 8, log=True)),
        ("range(1, 7, 2)", IntDistribution(1, 5, step=2)),
        ("range(3)", IntDistribution(0, 2)),
        ("range(5, 1, -2)", IntDistribution(3, 5, step=2)),
        ("range(0, 1, 0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("range(4, 5)", CategoricalDistribution([4])),
        ("choice(iou50, ignore_near)", CategoricalDistribution(["iou50", "ignore_near"])),
        ("4,8", CategoricalDistribution([4, 8])),
        ("choice(true,0.5)", CategoricalDistribution([True, 0.5])),
        ("choice([0.1,0.5],[0.2,0.9])", CategoricalDistribution(["[0.1,0.5]", "[0.2,0.9]"])),
    ],
)
def test_each_form_is_a_distribution(value: str, distribution):
    for space in (read(f"+a.b={value}"), read(**{"+a.b": value})):
        assert space.distributions == {"a.b": distribution}
        assert [drawn.argument for drawn in space.drawn] == ["+a.b"]


def test_text_of_a_choice_is_read_as_it_was_typed():
    [drawn] = read("name=choice('a,b','${x} y','=')").drawn
    choices = drawn.parameters["name"].choices  # type: ignore[attr-defined]
    values = [OverridesParser.create().parse_override(f"name={choice}").value() for choice in choices]
    assert values == ["a,b", "${x} y", "="]


def test_jobs_have_the_fixed_arguments_and_the_drawn_values():
    space = read("name=x", "++loss=choice(focal,'a b')", "~callbacks.best", "optimizer.lr=interval(0,1)")
    assert space.jobs({"loss": r"a\ b", "optimizer.lr": 1e-05}) == [
        ["name=x", "~callbacks.best", r"++loss=a\ b", "optimizer.lr=1e-05"]
    ]


def test_later_arguments_replace_the_params_of_the_file():
    params = {
        "optimizer.lr": "interval(0,1)",
        "loss": "choice(a,b)",
        "batch_size": 4,
        "optimizer": {"lr": "choice(2,3)"},
    }
    assert read(**params).distributions["optimizer.lr"] == CategoricalDistribution([2, 3])
    space = read("loss=focal", "+batch_size=range(2)", **params)
    assert space.fixed == ["loss=focal"]
    assert sorted(space.distributions) == ["batch_size", "optimizer.lr"]


@pytest.mark.parametrize("value", ["0,3", "choice(0,3)", "range(0,6,3)"])
def test_each_seed_is_a_job_of_the_trial(value: str):
    space = read(f"seed={value}", "loss=choice(a,b)")
    assert list(space.distributions) == ["loss"]
    assert space.jobs({"loss": "b"}) == [["loss=b", "seed=0"], ["loss=b", "seed=3"]]


def test_a_rising_list_is_as_long_as_that_of_the_config():
    space = read("scales=tag(rising, interval(0.1, 1))")
    assert space.distributions == {f"scales.{place}": FloatDistribution(0.1, 1) for place in range(3)}
    assert space.jobs({"scales.0": 0.5, "scales.1": 0.9, "scales.2": 0.25}) == [["scales=[0.25,0.5,0.9]"]]
    space = read("scales=tag(log, rising, int(interval(1, 9)))")
    assert space.distributions["scales.2"] == IntDistribution(1, 9, log=True)


@pytest.mark.parametrize(
    ("argument", "got"),
    [
        ("a=tag(lgo, interval(1, 2))", "lgo"),
        ("a=tag(log, interval(0, 2))", "low"),
        ("a=interval(2, 1)", "low"),
        ("text=tag(rising, interval(0, 2))", "got a"),
        ("nothing=tag(rising, interval(0, 2))", "got None"),
    ],
)
def test_mistakes_are_named(argument: str, got: str):
    with pytest.raises(ValueError, match=rf"^{argument.partition('=')[0]}: .*{got}"):
        read(argument)
