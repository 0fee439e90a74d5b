"""Sphinx's settings: ``make docs``. What is described is the installed package."""

import importlib.metadata

project = "ckpt_streamer"
release = importlib.metadata.version("ckpt_streamer")
html_title = f"ckpt_streamer {release}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "inherited-members": True}
python_use_unqualified_type_names = True
add_module_names = False
