"""Settings of the documentation: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

# Code cells and notebooks run on one core, without a display and without anybody's own cache.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
os.environ["SSD_CACHE"] = str(DOCS / "_build" / "cache")
# The example package of how_to/own_package.md.
os.environ["PYTHONPATH"] = os.pathsep.join([str(DOCS / "example_package"), os.environ.get("PYTHONPATH", "")])

project = "ssd_lightning"
author = copyright = "The ssd_lightning authors"
release = version = installed_version("ssd-lightning")
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "generated_pages",
    "public_names",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "example_package"]

# Every reference must lead somewhere. Those to other packages cannot be checked without a network.
nitpicky = True
EXTERNAL = "|".join([*sys.stdlib_module_names, "torch", "torchvision", "lightning", "jaxtyping", "numpy", "np"])
EXTERNAL += "|pandas|pd|matplotlib|PIL"
nitpick_ignore_regex = [("py:.*", rf"({EXTERNAL})\..*")]
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {"version": release}

# The cache is keyed by the code of a page: after a change of the package, delete docs/_build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / "executed")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_merge_streams = True

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "class"
autodoc_default_options = {"members": True}
toc_object_entries_show_parents = "hide"
add_module_names = False
python_display_short_literal_types = True
maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
viewcode_line_numbers = True

html_theme = "pydata_sphinx_theme"
html_title = "ssd_lightning"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
html_sidebars = {page: [] for page in ("index", "start", "results", "speed", "contributing", "changelog")}
copybutton_exclude = ".linenos, .gp, .go"
