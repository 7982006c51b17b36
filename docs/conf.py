"""Settings of the documentation: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

import os
import pkgutil
import re
import sys
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# Notebooks run in other processes, which must import this checkout too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["PYTHONWARNINGS"] = "ignore"

import pyro_gram  # noqa: E402

logger = getLogger(__name__)
project = "pyro_gram"
author = "the pyro_gram authors"
copyright = "the pyro_gram authors, Apache-2.0"
release = version = pyro_gram.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "parts/*.py", "**/.ipynb_checkpoints"]
suppress_warnings = ["config.cache", "myst-nb.lexer"]  # myst-nb.lexer: only if notebooks are not run

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds, enough for a busy machine; all tutorials together take about 80
nb_merge_streams = True
nb_execution_show_tb = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_math_renderer = "mathml"  # needs neither scripts nor the network
html_theme = "furo"
html_title = "pyro_gram"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False

PACKAGES = {
    "pyro_gram": "The entry points of the command line and of Python code",
    "pyro_gram.networks": "Plain torch modules: the core, encoders, decoders, heads",
    "pyro_gram.tasks": "The problems: their data, their solutions, their checks",
    "pyro_gram.inference": "Pyro: sites, families, guides, bounds, importance weights",
    "pyro_gram.sampling": "Trajectories of the prior, and the choice among their answers",
    "pyro_gram.training": "The trainer, its optimizer, its schedules",
    "pyro_gram.diagnostics": "Metrics, likelihoods, calibration, inference data, figures",
    "pyro_gram.runs": "A run: its directory, training, evaluation, diagnosis",
    "pyro_gram.system": "Command line, files, devices, processes",
    "pyro_gram.models": "The generative programs and their priors",
    "pyro_gram.guides": "The inference programs",
}


def public_modules(package: str) -> list[str]:
    """Return a package and its modules, without the subpackages that have a page of their own."""
    module = import_module(package)
    names = [package]
    home = next(iter(module.__path__))  # a checkout has a second entry, which holds models and guides
    for info in pkgutil.iter_modules([home], f"{package}."):
        if info.name.rpartition(".")[2].startswith("_") or info.name in PACKAGES:
            continue
        names += public_modules(info.name) if info.ispkg else [info.name]
    return names


def write_reference(*_: object) -> None:
    """Write one page for each package to ``reference/``: all its modules, with the docstrings of their public names."""
    for package, title in PACKAGES.items():
        lines = [f"{package}\n{'=' * len(package)}\n\n{title}.\n"]
        for name in public_modules(package):
            heading = f"{name}\n{'-' * len(name)}\n\n" if name != package else ""
            lines.append(f"{heading}.. automodule:: {name}\n   :members:\n")
        path = ROOT / "docs" / "reference" / f"{package}.rst"
        text = "\n".join(lines)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def to_mathml(latex: str, is_block: bool = False) -> str:
    """Convert a formula to MathML. If docutils does not know a command, warn and return the LaTeX source."""
    latex = re.sub(r"\\[bB]igg?[lrm]?(?![A-Za-z])", "", latex).replace(r"\dots", r"\ldots")
    if is_block and r"\\" in latex and r"\begin" not in latex:  # a docstring's formula with several rows
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    try:
        return tex2mathml(latex, as_block=is_block)
    except MathError as e:
        logger.warning("formula %r: %s", latex, e)
        return f"<code>{escape(latex)}</code>"


def visit_math(self: Any, node: Any) -> None:
    """Write an inline formula."""
    self.body.append(to_mathml(node.astext()))
    raise SkipNode


def visit_math_block(self: Any, node: Any) -> None:
    """Write a displayed formula in a box, which scrolls if the formula is wider than the page."""
    self.body.append(f'<div class="math-block">{to_mathml(node.astext(), is_block=True)}</div>')
    raise SkipNode


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_reference)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
