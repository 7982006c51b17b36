"""Check a run before it begins, so that errors in its training or measurement appear before any long work."""

from __future__ import annotations

from torch import Tensor

from pyro_gram.diagnostics.bounds import bounds
from pyro_gram.diagnostics.likelihood import prior_log_likelihood
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import guide_traits
from pyro_gram.inference.guide import why_no_guide
from pyro_gram.inference.importance import guide_draws
from pyro_gram.runs.measure import has_likelihood
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.steps import to_device_of
from pyro_gram.solver import Solver
from pyro_gram.tasks.base import SPLITS, Task


def check_data(task: Task) -> None:
    """Load every split of a task, and the classifier if the task's metrics need one.

    Raises:
        InputError: a file of the task is damaged.
        ConfigError: data or a package is missing.
    """
    for split in SPLITS:
        task.split(split)
    if task.classifier == "digits":
        from pyro_gram.diagnostics import digits

        digits.check_installed()
        digits.load_classifier()


def check_guide_capacity(solver: Solver) -> None:
    """Raise ConfigError if a guide has parameters for each pair (x, y), but not for all pairs of the training."""
    if guide_traits(solver.guide).is_amortized:
        return
    config, pairs = solver.config, len(solver.task.split("train").solutions)
    name = config.names["guide"]
    if config.train.augment:
        raise ConfigError(
            f"guide {name!r} has parameters for each pair (x, y), and symmetries make new pairs: set "
            "train.augment to false"
        )
    if pairs > config.guide.num_pairs:
        raise ConfigError(
            f"guide {name!r} has room for {config.guide.num_pairs} pairs (x, y), and the training split has {pairs}: "
            f"set --guide.num_pairs to {pairs}"
        )


def check_rollout(solver: Solver) -> None:
    """Run a trajectory of a smallest and of a largest input.

    Raises:
        ConfigError: the prior cannot have the temper that the config sets, or has no form for padding.
    """
    x = solver.task.split("test").inputs
    if x is not None:
        sizes = solver.task.spec.sizes_of(x)
        x = to_device_of(solver.model, x[[int(sizes.argmin()), int(sizes.argmax())]])
    rollout(solver.model, x, num_samples=1, depth=1, temper=solver.config.temper)


def check_estimates(solver: Solver, x: Tensor | None, y: Tensor) -> None:
    """Compute the importance weights, bounds and log p(y | x) of two pairs. The random state is unchanged.

    Args:
        solver: a model with its guide.
        x, y: a batch, ``[B, *event]`` and ``[B, L_out]``, whose first two pairs are used.

    Raises:
        ConfigError: several inputs share a latent or an observation; the density of the program changes when y
            is passed to it; or a tensor fits one batch size only.
    """
    model, guide = solver.model, solver.guide
    x, y = to_device_of(model, None if x is None else x[:2]), to_device_of(model, y[:2])
    if not why_no_guide(model, guide):
        guide_draws(model, guide, x, y, steps=1, num_samples=2)
    bounds(model, guide, x, y, steps=1)
    if has_likelihood(solver):
        prior_log_likelihood(model, x, y, depth=1, num_samples=2)
