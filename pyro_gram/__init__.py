"""pyro_gram: generative recursive reasoning as probabilistic programs.

>>> import pyro_gram
>>> solver = pyro_gram.load("checkpoints/coloring8.safetensors")      # doctest: +SKIP
>>> solver.sample(["GCR`v_"], num_samples=20).tokens.shape            # doctest: +SKIP
torch.Size([20, 1, 8])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_gram.system.checkout import add_finder
from pyro_gram.version import __version__

if TYPE_CHECKING:
    from pyro_gram.sampling.tempering import TemperConfig
    from pyro_gram.solver import Solver, load

__all__ = ["Solver", "TemperConfig", "__version__", "load"]

add_finder()


def __getattr__(name: str) -> Any:
    # Torch and Pyro take seconds to import: only when something of theirs is asked for.
    if name in ("Solver", "TemperConfig", "load"):
        from pyro_gram import solver

        return getattr(solver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
