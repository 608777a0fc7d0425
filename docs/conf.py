"""Configuration of the documentation site; `make docs` builds it without a network."""

import re
import sys
from importlib.metadata import version as installed_version
from types import ModuleType

import torch

project = "pureopt"
author = "The pureopt developers"
project_copyright = "The pureopt developers"
version = release = installed_version("pureopt")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
# Of a function among the settings of the gallery.
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = f"pureopt {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {
        "color-brand-primary": "#1b6ca8",
        "color-brand-content": "#1b6ca8",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cc0f2",
        "color-brand-content": "#7cc0f2",
    },
}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Shipped with the site, so that formulas show without a network.
mathjax_path = "mathjax/tex-chtml.js"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Copy the code of a session without its prompts and its output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True


def _as_in_a_new_process(_config, _example):
    """Take back what an example leaves: its dtype, and its `__main__` in the compiler."""
    torch.set_default_dtype(torch.float32)
    compiler = sys.modules.get("torch._dynamo.symbolic_convert")
    if compiler is not None:
        vars(compiler)["_import_module"].cache_clear()
    for module in [*sys.modules.values()]:
        if isinstance(module, ModuleType):
            module.__dict__.pop("__import___main__", None)


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"__init__\.py",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "abort_on_example_error": True,
    "image_srcset": ["2x"],
    "reset_modules": ("matplotlib", _as_in_a_new_process),
}


def _quote_attribute_types(_app, _what, _name, _obj, _options, lines):
    """Show the type of an attribute as code: the ``*`` of a shape is no emphasis."""
    lines[:] = [re.sub(r"^(:vartype \w+:) (.+)$", r"\1 ``\2``", line) for line in lines]


def setup(app):
    """Run after napoleon, which writes the ``:vartype:`` lines."""
    app.connect("autodoc-process-docstring", _quote_attribute_types, priority=900)
