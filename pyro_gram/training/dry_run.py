"""Prepare a run before its first batch: check that the model can be trained, and compile its core."""

from __future__ import annotations

import pyro
import torch
from pyro import poutine

from pyro_gram.errors import ConfigError
from pyro_gram.training.on_policy import prior_end
from pyro_gram.training.precision import configure_core, explain_compiler_errors, matmul_precision
from pyro_gram.training.trainer import Trainer


def dry_run(trainer: Trainer) -> tuple[str, str] | None:
    """Check that the model can be trained: compute the loss of two pairs (x, y), without an update.

    The caller's random state is restored.

    Returns:
        the names of the posterior's and the prior's distribution, if the ``balanced`` bound estimates their KL from
        draws because it has no closed form; otherwise None.

    Raises:
        ConfigError: the model, prior, guide and bound do not fit together, or a parameter would stay untrained.
    """
    elbo, device = trainer.elbo, trainer.device
    x, y = trainer.batches(0)
    x, y = None if x is None else x[:2].to(device), y[:2].to(device)
    with torch.random.fork_rng(devices=random_devices(device)), pyro.validation_enabled(False):
        try:
            with poutine.trace(param_only=True) as capture:
                elbo.loss(trainer.model, trainer.guide, x, y)
        except NotImplementedError as e:  # a distribution lacks a method, or gradients through its draws
            raise ConfigError(str(e)) from None
        trainer.optimizer.check_parameters(site["value"].unconstrained() for site in capture.trace.nodes.values())
        if elbo.terms is None:
            raise ConfigError(
                f"the program {type(trainer.model).__name__} has no sites 'y', 'h' and 'l': observe the answer at 'y', "
                "and call pyro_gram.inference.sites.record_state in it"
            )
    trainer.is_checked = True
    return getattr(elbo, "estimated_kl", None)


def prepare_core(trainer: Trainer) -> None:
    """Set the precision of the core and compile it, as the config says. The caller's random state is restored.

    Raises:
        UserError: the compiler fails.
    """
    c = trainer.config
    configure_core(trainer.model, c.precision, c.compile, trainer.device)
    if c.compile:
        with explain_compiler_errors(), matmul_precision(c.precision, trainer.device):
            _compile_core(trainer)


def _compile_core(trainer: Trainer) -> None:
    """Compile the core by running it on a batch: from z_0 and from another state, with gradient and without."""
    x, y = (trainer.shard(tensor) for tensor in trainer.batches(trainer.number))
    with torch.random.fork_rng(devices=random_devices(trainer.device)), pyro.validation_enabled(False):
        state = None
        for _ in range(2):
            trainer.elbo.loss_and_grads(trainer.model, trainer.guide, x, y, state)
            assert trainer.elbo.terms is not None
            state = trainer.elbo.terms.state
        if trainer.config.on_policy_depth:
            assert x is not None
            prior_end(trainer.model, x, 2)
    trainer.optimizer.zero_grad()


def random_devices(device: torch.device) -> list[torch.device]:
    """Return the devices besides the CPU whose random states ``torch.random.fork_rng`` must restore."""
    return [device] if device.type == "cuda" else []
