"""Autodoc for a public interface that is imported lazily, with the shapes of tensors in its signatures."""

import pkgutil
import re
import sys
from typing import Any

from docutils import nodes
from generated_pages import public_names
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer

CALLS = ("forward", "__call__")
"""Methods that are shown even without a docstring, because their signatures hold the shapes."""

OTHER_PACKAGES = {
    "Tensor": "https://docs.pytorch.org/docs/stable/tensors.html",
    "torch.Tensor": "https://docs.pytorch.org/docs/stable/tensors.html",
    "torch.nn.Module": "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html",
    "torch.nn.modules.module.Module": "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html",
    "torch.optim.Optimizer": "https://docs.pytorch.org/docs/stable/optim.html",
    "torch.optim.optimizer.Optimizer": "https://docs.pytorch.org/docs/stable/optim.html",
    "ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    "pandas.DataFrame": "https://pandas.pydata.org/docs/reference/frame.html",
    "pathlib.Path": "https://docs.python.org/3/library/pathlib.html",
}
"""Pages of types from other packages that many signatures name."""


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("missing-reference", resolve)
    app.connect("autodoc-skip-member", keep_calls)
    # Napoleon, at 500, takes the words before a colon in the text of an attribute for its type.
    app.connect("autodoc-process-docstring", remember_attribute, priority=400)
    app.connect("autodoc-process-docstring", restore_attribute, priority=600)
    app.connect("doctree-read", drop_bare_fields, priority=400)
    app.connect("doctree-resolved", quote_shapes)
    return {"version": "1", "parallel_read_safe": True}


def resolve(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element) -> Any:
    """Lead a name from the file where it is written to the public name, and known other types to their pages."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    if target in OTHER_PACKAGES:
        return nodes.reference("", "", content, internal=False, refuri=OTHER_PACKAGES[target])
    for name in public_names():
        written = target if "." in target else f"{name.defined.rpartition('.')[0]}.{target}"
        if written == name.defined or written.startswith(f"{name.defined}."):
            public = written.replace(name.defined, name.public, 1)
            if "." in target and content.astext().removesuffix("()") == target:
                content = nodes.literal("", content.astext().rsplit(".", 1)[1], classes=content["classes"])
            found = env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, content)
            if found is not None:
                return found
    # Names that are not public have no page, but they must exist.
    return content if exists(target) else None


def exists(name: str) -> bool:
    """Return whether a full name can be imported, or a short name occurs in any module of the package."""
    if name.startswith("ssd_lightning."):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            return False
        return True
    modules = [module for path, module in list(sys.modules.items()) if path.startswith("ssd_lightning.")]
    first, *rest = name.split(".")
    return any(first in vars(module) and has(vars(module)[first], rest) for module in modules)


def has(thing: Any, names: list[str]) -> bool:
    for name in names:
        if not hasattr(thing, name):
            return False
        thing = getattr(thing, name)
    return True


def keep_calls(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    return False if name in CALLS and callable(member) else None


ATTRIBUTES = ("attribute", "data", "property")


def remember_attribute(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Keep the text of an attribute, without what Python itself says of the fields of named tuples."""
    if what == "data":
        lines[:] = text_of_constant(name, member)
    # |x| is an absolute value here, never a substitution of reStructuredText.
    lines[:] = [re.sub(r"\|(\w+)\|", r"\\|\1\\|", line) for line in lines]
    if lines and re.match(r"Alias for field number \d+", lines[0]):
        lines.clear()
    app.env.temp_data["attribute"] = list(lines)


def text_of_constant(name: str, value: Any) -> list[str]:
    """Return the string below a constant in its file, and the entries of a dictionary."""
    defined = next(public.defined for public in public_names() if public.public == name)
    module, _, short = defined.rpartition(".")
    lines = list(ModuleAnalyzer.for_module(module).find_attr_docs().get(("", short), []))
    if isinstance(value, dict):
        lines += ["", *(f"- ``{key}``: {meaning}" for key, meaning in value.items()), ""]
    return lines


def restore_attribute(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    if what in ATTRIBUTES:
        lines[:] = app.env.temp_data["attribute"]


def drop_bare_fields(app: Sphinx, doctree: nodes.document) -> None:
    """Drop attributes without a text: the signature of their class shows the same."""
    for node in list(doctree.findall(addnodes.desc)):
        if node["objtype"] == "attribute" and not node[-1].astext():
            node.parent.remove(node)


def quote_shapes(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Write the strings in signatures as the source does, in double quotes."""
    for node in doctree.findall(addnodes.desc_sig_literal_string):
        text = node.astext()
        if re.fullmatch(r"'[^'\"]*'", text):
            node.children = [nodes.Text(f'"{text[1:-1]}"')]
