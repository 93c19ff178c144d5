"""Limits on what a saved config may name, since a run folder may come from a stranger.

Hydra builds whatever ``_target_`` names, so ``torch.load`` or ``os.system`` in a config would run a stranger's code.
"""

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import ssd_lightning

LISTED = re.compile(
    r"torch\.optim(\.lr_scheduler)?\.[A-Z]\w*|lightning\.(pytorch\.)?Trainer|"
    r"lightning\.pytorch\.(callbacks|loggers|profilers|strategies)\.[A-Z]\w*"
)
"""Classes of other packages that a saved config may name."""

RESOLVERS = ("hydra", "oc.env", "now")
"""Resolvers of ``${…}`` that a saved config may use. ``oc.create`` would build a config out of text."""

NEVER_PROPOSED = {
    *sys.stdlib_module_names,
    "hydra",
    "lightning",
    "numpy",
    "omegaconf",
    "pandas",
    "ssd_lightning",
    "torch",
}
"""Packages that no message proposes to trust: they are not a user's own, and much of their code is unsafe to call."""


def trusted_packages_in(arguments: list[str]) -> list[str]:
    """Return the packages that the command line trusts: ``trusted_packages=[my_project,…]``."""
    values = [argument.partition("=")[2] for argument in arguments if re.match(r"\+*trusted_packages=", argument)]
    return re.findall(r"[\w.-]+", values[-1]) if values else []


def refuse_untrusted_config(config: Any, path: Path | str, key: str, trusted_packages: Collection[str]) -> None:
    """Refuse a saved config that names what is neither on the list nor in a trusted package.

    Args:
        config: the content of the file: dictionaries, lists, text and numbers.
        path: the file, for messages.
        key: the argument that named the file, for messages.
        trusted_packages: top-level packages of the user's own.

    Raises:
        ValueError: with the file and what it names.
    """
    for section in ("hydra", "defaults"):
        if isinstance(config, Mapping) and section in config:
            raise ValueError(f"{key}: expected the config of a run, got {path} with a section {section!r}; refused")
    for name, value in _leaves(config):
        if name == "_target_" and not _is_listed(value, trusted_packages):
            package, _, rest = str(value).partition(".")
            if package == "ssd_lightning" and rest.rpartition(".")[2] in dir(ssd_lightning):
                raise ValueError(
                    f"{key}: expected a file of ssd_lightning 0.2 or later, got {path}, which names {value}. "
                    "Try training again, or the version that wrote the file."
                )
            advice = "; refused"
            if package.isidentifier() and rest and package not in {*NEVER_PROPOSED, "ssd_lightning"}:
                advice = f". Try trusted_packages=[{package}] if you trust that code."
            raise ValueError(f"{key}: expected only names that a saved config may use, got {value} in {path}{advice}")
        if isinstance(value, str) and (resolver := _resolver_not_listed(value)) is not None:
            allowed = ", ".join(RESOLVERS)
            raise ValueError(f"{key}: expected only the resolvers {allowed}, got ${{{resolver}:…}} in {path}; refused")


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each target, whatever its type, and of all else that is no dictionary or list."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from [(key, child)] if key == "_target_" else _leaves(child, str(key))
    elif isinstance(node, list):
        for child in node:
            yield from _leaves(child)
    else:
        yield name, node


def _is_listed(target: Any, trusted_packages: Collection[str]) -> bool:
    if not isinstance(target, str):
        return False
    package, _, rest = target.partition(".")
    if package == "ssd_lightning":
        return rest in dir(ssd_lightning)
    return LISTED.fullmatch(target) is not None or (package in trusted_packages and rest != "")


def _resolver_not_listed(text: str) -> str | None:
    """Return the first resolver in a text that is not listed; a computed name counts as not listed."""
    for name, colon in re.findall(r"\$\{([^:}]*)(:?)", text):
        if "$" in name or (colon and name.strip() not in RESOLVERS):
            return str(name)
    return None
