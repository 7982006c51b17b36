"""pyro_gram: generative recursive reasoning as probabilistic programs.

>>> import pyro_gram
>>> solver = pyro_gram.load("coloring")
>>> solver.sample(["GCR`v_"], num_samples=20).tokens.shape
torch.Size([20, 1, 20])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_gram.version import __version__

if TYPE_CHECKING:
    from pyro_gram.checkpoint import load
    from pyro_gram.sampling.tempering import TemperConfig
    from pyro_gram.solver import Solver

__all__ = ["Solver", "TemperConfig", "__version__", "load"]

# In a wheel, models and guides are subpackages. In a checkout they lie beside the package: look for them there too.
if not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).resolve().parents[1]))


def __getattr__(name: str) -> Any:
    # Torch and Pyro take seconds to import: the modules that need them are imported on first use.
    if name == "load":
        from pyro_gram.checkpoint import load

        return load
    if name in ("Solver", "TemperConfig"):
        from pyro_gram import solver

        return getattr(solver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
