"""YAML of strangers: any content is read or refused within a second."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssd_lightning import require
from ssd_lightning.data.formats.yolo_files import read_description
from ssd_lightning.require import parse_yaml
from ssd_lightning.run_folder import read_config

SLOW = {
    "nested lists": f"{'[' * 5000}{']' * 5000}",
    "nested mappings": f"{'{a: ' * 5000}1{'}' * 5000}",
    "nested keys": f"{'? ' * 100_000}a",
    "nested items": f"{'- ' * 100_000}a",
    "nested blocks": "".join(f"{' ' * level}a:\n" for level in range(600)),
    "nested without an end": "[" * 250_000,
    "nested after a byte that is no text": f'a: "\\udcff"\nb: {"[" * 5000}{"]" * 5000}',
    "many values": f"[{'1,' * 125_000}]",
    "many values and a byte that is no text": '- "\\udcff"\n' + "- 1\n" * 50_000,
    "just few enough values and a byte that is no text": '- "\\udcff"\n' + "- 1\n" * 8_000,
    "a long value and a byte that is no text": f'a: "\\udcff"\nb: {"x " * 100_000}',
    "many keys": "a: b\n" * 50_000,
    "many merged keys": "a:\n" + "".join(f"  <<: {{k{number}: 1}}\n" for number in range(10_000)),
    "a number to the base 60": f"a: 1{':59' * 80_000}",
    "many numbers to the base 60": f"- 1{':59' * 3000}\n" * 25,
    "a long number": f"a: {'9' * 250_000}",
    "many numbers": f"- {'9' * 4000}\n" * 60,
    "many dates": "- 2001-12-14t21:59:43.10-05:00\n" * 8000,
    "an open quote": f'a: "{"x" * 250_000}',
    "comments": "#\n" * 100_000,
}
"""Files of less than 2^18 bytes that take YAML's readers long, or that end them."""


@pytest.mark.parametrize("read", [read_config, lambda path: read_description(str(path))], ids=["config", "description"])
@pytest.mark.parametrize("name", SLOW)
def test_a_slow_file_is_read_or_refused_within_a_second(tmp_path: Path, name: str, read: Callable[[Path], Any]):
    path = tmp_path / "data.yaml"
    path.write_text(SLOW[name])
    assert path.stat().st_size < 2**18
    # The time of this process alone, since other processes may keep this one waiting.
    began = time.process_time()
    message = f"{path}: "
    try:
        read(path)
    except ValueError as error:
        message = str(error)
    assert time.process_time() - began < 1
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


@pytest.mark.parametrize("text", ["a: [1, 2.5, null, no, 1:30, 2001-12-14]", 'a: "d\\udcff"', "- é\n- 'x'", "", "a"])
@pytest.mark.parametrize("as_text", [False, True])
def test_the_content_is_that_of_the_reader_in_python(text: str, as_text: bool):
    expected = yaml.load(text, yaml.BaseLoader if as_text else yaml.SafeLoader)
    assert parse_yaml(text.encode(), as_text) == expected


def test_limits_count_from_one_too_many(monkeypatch: pytest.MonkeyPatch):
    depth = require.DEEPEST
    assert parse_yaml(b"[" * depth + b"]" * depth)
    with pytest.raises(ValueError, match=f"at most {depth} levels"):
        parse_yaml(b"[" * (depth + 1) + b"]" * (depth + 1))
    assert parse_yaml(b"x" * require.LONGEST_VALUE)
    assert len(parse_yaml(b"'" + b"x" * 2 * require.LONGEST_VALUE + b"'")) == 2 * require.LONGEST_VALUE
    with pytest.raises(ValueError, match=f"at most {require.LONGEST_VALUE} characters"):
        parse_yaml(b"x" * (require.LONGEST_VALUE + 1))
    monkeypatch.setattr(require, "MOST_VALUES", 20)
    assert parse_yaml(b"[1, 2, 3]") == [1, 2, 3]
    with pytest.raises(ValueError, match="at most 20 values"):
        parse_yaml(b"[" + b"1, " * 20 + b"]")


def test_aliases_are_read_only_where_they_are_allowed():
    assert parse_yaml(b"a: &a [x]\nb: *a", as_text=True, has_aliases=True) == {"a": ["x"], "b": ["x"]}
    with pytest.raises(ValueError, match="aliases"):
        parse_yaml(b"a: &a [x]\nb: *a")
