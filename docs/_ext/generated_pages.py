"""Pages made from the project itself, before Sphinx reads the folder.

The reference of commands and groups is made from ``conf/``, and the reference of Python names from the ``.pyi`` files.
The tutorials are the notebooks. Nothing that is made here is committed.
"""

import pkgutil
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from sphinx.application import Sphinx

from ssd_lightning.cli.commands import COMMANDS
from ssd_lightning.cli.help import GROUPS, Command, main_config
from ssd_lightning.detector.presets import CONFIG_FOLDER

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

ROOMS = {
    "structures": "The types that flow between the parts, and their shapes.",
    "detector": "The network and its parts: default boxes, matching, losses, post-processing, backbones.",
    "data": "Data sets, augmentation, and the data module that makes batches.",
    "training": "The Lightning module, schedules, callbacks, loggers and checkpoints.",
    "deploy": "Use of a trained detector: prediction on pictures, export, exported files.",
    "scoring": "Average precision, causes of errors, missed objects, and figures of them.",
    "review": "Many runs: tables, curves, importance of settings, paired comparison.",
}
"""The rooms of the package in the order in which a reader meets them."""

FACES = {"ssd_lightning": "__init__.pyi", "ssd_lightning.scoring": "scoring/__init__.pyi"} | {
    "ssd_lightning.review": "review/__init__.pyi"
}
"""The modules whose names are public, and the files that list those names."""


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", make_pages)
    return {"version": "1", "parallel_read_safe": True}


def make_pages(app: Sphinx) -> None:
    pages = {
        **{f"reference/commands/{name}.md": command_page(command) for name, command in COMMANDS.items()},
        **{f"reference/groups/{group}.md": group_page(group) for group in GROUPS},
        **{f"reference/api/{room}.md": room_page(room) for room in rooms()},
        "reference/groups/index.md": groups_page(),
        "reference/commands/index.md": commands_page(),
        "reference/api/index.md": rooms_page(),
    }
    for folder in ("commands", "groups", "api"):
        (DOCS / "reference" / folder).mkdir(parents=True, exist_ok=True)
        for page in (DOCS / "reference" / folder).glob("*.md"):
            if f"reference/{folder}/{page.name}" not in pages:
                page.unlink()
    for name, text in pages.items():
        write(DOCS / name, text)
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        copy = DOCS / "tutorials" / notebook.name
        if not copy.exists() or copy.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, copy)


def write(path: Path, text: str) -> None:
    """Leave an equal file alone, so that Sphinx does not read it again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def first_comment(text: str) -> str:
    """The comment at the top of an option's file, as Markdown; empty lines of the comment end paragraphs."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    paragraphs = "\n".join(lines).strip().split("\n\n")
    return "\n\n".join(code_block(part) if part.startswith("  ") else markdown(part) for part in paragraphs)


def code_block(text: str) -> str:
    return f"```text\n{text.strip()}\n```".replace("\n  ", "\n")


def markdown(text: str) -> str:
    """Prose of a comment, with what a reader can type set as code.

    Backticks that are there already stay. Characters that Markdown would read as markup are escaped.
    """
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else marked(part) for part in parts)


def marked(text: str) -> str:
    typed = re.compile(
        r"((?<![\w=])[+'\w./@]*\w=[^\s,;:()]+(?:,[^\s,;:()]+)*[\w\]>}'…]|ssd-[a-z]+|<[^>]+>|\$\{[^}]*\})"
    )
    parts = typed.split(text)
    return "".join(f"`{part}`" if place % 2 else escaped(part) for place, part in enumerate(parts))


def escaped(text: str) -> str:
    return re.sub(r"([*_\[\]<>#$|])", r"\\\1", text)


def shown(value: Any) -> str:
    if value == "???":
        return "*required*"
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("...\n").strip()
    return f"`{text}`"


def options_of(group: str) -> list[Path]:
    return sorted((CONFIG_FOLDER / group).glob("*.yaml"))


def command_page(command: Command) -> str:
    defaults, keys = main_config(command.config)
    about = command.about[0].upper() + command.about[1:]
    lines = [f"# {command.name}", "", f"{about}.", "", "```text", usage(command), "```", ""]
    if command.positional:
        names = " and ".join(f"`{name}`" for name in command.positional)
        lines += [f"Values of {names} may be given in this order without the key.", ""]
    lines += ["## Examples", "", "```bash", *explained(command.examples), "```", "", "## Keys", ""]
    lines += ["| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key.name}` | {shown(key.default)} | {markdown(key.about)} |" for key in keys.values()]
    if defaults:
        lines += ["", "## Groups", "", "Each group takes the name of one of its options, such as "]
        lines[-1] += "`loss=focal`. The page of a group shows what its options contain."
        lines += ["", "| group | decides | default |", "|---|---|---|"]
        for group in GROUPS:
            if group in defaults:
                default = defaults[group]
                lines.append(
                    f"| [{group}](../groups/{group}.md) | {escaped(GROUPS[group])} | "
                    f"{f'`{default}`' if default else 'none'} |"
                )
    lines += ["", "## Other options", "", "```text"]
    lines += [f"{command.name} --help               list groups, options and keys"]
    lines += [f"{command.name} --help group=option  list the settings of an option"] if defaults else []
    lines += [f"{command.name} --cfg job            show the whole config without running"]
    lines += [f"{command.name} -m key=a,b,c         run once for each value"]
    lines += [f"{command.name} --hydra-help         list all options of Hydra", "```"]
    return "\n".join(lines) + "\n"


def usage(command: Command) -> str:
    return " ".join([command.name, *(f"[{name}]" for name in command.positional), "[key=value ...]"])


def explained(examples: list[str]) -> Iterator[str]:
    """Each example with its explanation, which follows the command after several spaces, as a comment above it."""
    for number, example in enumerate(examples):
        typed, *explanation = re.split(r"\s{2,}", example, maxsplit=1)
        if explanation:
            yield from ["", f"# {explanation[0]}"] if number else [f"# {explanation[0]}"]
        yield typed


def commands_page() -> str:
    lines = [
        "# Commands",
        "",
        "Every command takes `key=value` arguments in any order. A key that nothing reads is refused.",
        "",
    ]
    lines += ["| command | use |", "|---|---|"]
    lines += [f"| [{name}]({name}.md) | {command.about} |" for name, command in COMMANDS.items()]
    lines += ["", *toctree(COMMANDS)]
    return "\n".join(lines) + "\n"


def group_page(group: str) -> str:
    purpose = GROUPS[group][0].upper() + GROUPS[group][1:]
    lines = [f"# {group}", "", f"{markdown(purpose)}.", ""]
    used_by = [name for name, command in COMMANDS.items() if group in main_config(command.config)[0]]
    links = ", ".join(f"[{name}](../commands/{name}.md)" for name in used_by)
    lines += [f"Commands with this group: {links}.", ""]
    default = main_config("train")[0].get(group)
    if default:
        lines += [f"`ssd-train` uses `{group}={default}` unless another option is given.", ""]
    lines += [f"`ssd-train --help {group}=<option>` lists the settings of an option with their defaults.", ""]
    for path in options_of(group):
        text = path.read_text()
        content = "\n".join(line for line in without_first_comment(text))
        lines += [f"## {path.stem}", "", first_comment(text), ""]
        lines += [f"```{{code-block}} yaml\n:caption: conf/{group}/{path.name}\n\n{content.strip()}\n```", ""]
    return "\n".join(lines)


def without_first_comment(text: str) -> Iterator[str]:
    at_top = True
    for line in text.splitlines():
        at_top = at_top and line.startswith("#")
        if not at_top or line.startswith("# @package"):
            yield line


def groups_page() -> str:
    lines = ["# Groups", "", "A group is a folder in `conf/`, and an option is a file in that folder. The argument "]
    lines[-1] += "`loss=focal` chooses `conf/loss/focal.yaml`."
    lines += ["", "| group | decides | options |", "|---|---|---|"]
    for group, purpose in GROUPS.items():
        options = ", ".join(f"`{path.stem}`" for path in options_of(group))
        lines.append(f"| [{group}]({group}.md) | {escaped(purpose)} | {options} |")
    return "\n".join([*lines, "", *toctree(GROUPS)]) + "\n"


def toctree(names: Any) -> list[str]:
    return ["```{toctree}", ":hidden:", ":maxdepth: 1", "", *names, "```"]


class Name(NamedTuple):
    """A public name."""

    public: str
    """The name that users import, such as ``ssd_lightning.SSD``."""
    defined: str
    """The name in the module that defines it, such as ``ssd_lightning.detector.model.SSD``."""


def public_names() -> list[Name]:
    """All names of the public interface; a name that two modules offer is there once, as the first offers it."""
    names: dict[str, Name] = {}
    for module, file in FACES.items():
        text = (ROOT / "ssd_lightning" / file).read_text()
        for source, name in re.findall(r"^from \.([\w.]+) import (\w+) as \w+", text, flags=re.MULTILINE):
            defined = f"{module}.{source}.{name}"
            names.setdefault(defined, Name(f"{module}.{name}", defined))
    return list(names.values())


def rooms() -> dict[str, list[Name]]:
    found: dict[str, list[Name]] = {}
    for name in public_names():
        found.setdefault(name.defined.split(".")[1], []).append(name)
    order = list(SECTIONS)
    for names in found.values():
        names.sort(key=lambda name: order.index(section(name)) if section(name) in order else len(order))
    return {room: found[room] for room in [*ROOMS, *sorted(found.keys() - ROOMS.keys())] if room in found}


def room_page(room: str) -> str:
    lines = [f"# {room}", ""]
    if room != "structures":
        lines += [ROOMS.get(room, ""), ""]
    else:
        lines += ["```{eval-rst}", ".. automodule:: ssd_lightning.structures", "   :no-members:", "```", ""]
    sections: dict[str, list[Name]] = {}
    for name in rooms()[room]:
        sections.setdefault(section(name), []).append(name)
    for title in sections:
        if len(sections) > 1:
            lines += [f"## {title}", ""]
        for name in sections[title]:
            options = ["   :no-value:"] if directive(name) == "autodata" else []
            lines += ["```{eval-rst}", f".. {directive(name)}:: {name.public}", *options, "```", ""]
    return "\n".join(lines)


def directive(name: Name) -> str:
    thing = pkgutil.resolve_name(name.public)
    if isinstance(thing, type):
        return "autoclass"
    return "autofunction" if callable(thing) else "autodata"


SECTIONS = {
    "Default boxes": ["default_boxes"],
    "Matching": ["matching"],
    "Losses": ["losses"],
    "Post-processing": ["postprocess"],
    "Network and heads": ["model"],
    "Extra layers": ["extra_layers"],
    "Backbones": ["tiny", "vgg", "torchvision_features"],
    "Detectors by name": ["presets"],
    "Data module": ["datamodule"],
    "PASCAL VOC and VOC-style folders": ["voc"],
    "COCO": ["coco"],
    "Bananas": ["dataset"],
    "Other formats": ["annotations"],
    "Augmentation": ["pipeline", "windows", "colours"],
    "Module": ["module"],
    "Optimizer groups and schedules": ["parameter_groups", "schedules"],
    "Checkpoints": ["checkpoint", "pretrained"],
    "Callbacks": ["callbacks"],
    "Loggers": ["metrics_file", "tensorboard_events", "wandb_run"],
    "Scores": ["scores", "average_precision", "confusion"],
    "Causes of errors": ["errors"],
    "Missed objects": ["missed"],
    "Stored detections": ["stored_detections", "run_report"],
    "Figures": ["score_figures", "error_figures", "run_figures"],
    "Runs": ["runs", "same_pictures"],
    "Settings": ["settings"],
    "Paired comparison": ["bootstrap"],
    "HTML page": ["comparison_report"],
}
"""Titles in the reference, with the files whose names stand below them."""


def section(name: Name) -> str:
    file = name.defined.split(".")[-2]
    return next((title for title, files in SECTIONS.items() if file in files), file.replace("_", " ").capitalize())


def rooms_page() -> str:
    lines = ["# Python interface", "", "Names are imported from `ssd_lightning`, or from `ssd_lightning.scoring` and "]
    lines[-1] += "`ssd_lightning.review`. Importing one name loads only what that name needs."
    lines += ["", 'Shapes stand in the signatures: `Float[Tensor, "batch boxes 4"]` is a tensor of floating-point ']
    lines[-1] += (
        "numbers with the axes batch, boxes and 4. An axis name means the same length throughout a signature, and "
    )
    lines[-1] += "`*batch` stands for any number of axes."
    lines += ["", "| room | names |", "|---|---|"]
    for room, names in rooms().items():
        shown_names = ", ".join(f"{{py:obj}}`~{name.public}`" for name in names)
        lines.append(f"| [{room}]({room}.md) | {shown_names} |")
    return "\n".join([*lines, "", *toctree(rooms())]) + "\n"
