"""Build a solver from the settings of a run."""

from __future__ import annotations

from dataclasses import asdict

import torch

from pyro_gram.config import RunConfig
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import guide_traits, model_sizes, model_traits, prior_traits
from pyro_gram.presets import DEFAULT_NAMES
from pyro_gram.registry import GUIDES, MODELS, PRIORS
from pyro_gram.solver import Solver
from pyro_gram.tasks.base import Task, make_task


def build_task(config: RunConfig, data_dir: str | None = None) -> Task:
    """Make the task of a run. Raises ConfigError if the parts of the run do not fit together."""
    check_parts(config)
    return make_task(config.names["task"], config.task, data_dir)


def build(config: RunConfig, data_dir: str | None = None, task: Task | None = None) -> Solver:
    """Build the task, model and guide of a run. The weights are drawn under the run's seed.

    The caller's random state is unchanged.

    Args:
        config: the settings of the run.
        data_dir: the folder with the task's data files, if the task reads any.
        task: the result of :func:`build_task`; None to make the task here.

    Raises:
        ConfigError: the parts of the run do not fit together.
    """
    task = build_task(config, data_dir) if task is None else task
    _check_completion(config, task)
    width = model_sizes(config.model).width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        prior = PRIORS.get(config.names["prior"])(config.prior, width)
        model = MODELS.get(config.names["model"])(config.model, task.spec, prior)
        guide = GUIDES.get(config.names["guide"])(config.guide, task.spec, model, width)
    return Solver(config, task, model, guide)


def check_parts(config: RunConfig) -> None:
    """Check by their traits that the model, prior and guide of a run fit together. Raises ConfigError."""
    names = config.names
    model, prior, guide = (r.get(names[part]) for part, r in (("model", MODELS), ("prior", PRIORS), ("guide", GUIDES)))
    model_facts, prior_facts = model_traits(model), prior_traits(prior)
    if len({model_facts.guidance, prior_facts.guidance, guide_traits(guide).guidance}) > 1:
        defaults = {**DEFAULT_NAMES, **model_facts.default_parts}
        raise ConfigError(
            f"prior {names['prior']!r} and guide {names['guide']!r} do not fit model {names['model']!r}: use "
            f"--prior {defaults['prior']} --guide {defaults['guide']} with it"
        )
    has_inference, is_deterministic = not guide_traits(guide).follows_prior, prior_facts.family is None
    if not model_facts.has_guidance and not (is_deterministic and not has_inference):
        raise ConfigError(f"model {names['model']!r} has no guidance: use --prior none and --guide prior with it")
    if is_deterministic and has_inference:
        raise ConfigError(
            f"prior {names['prior']!r} leaves nothing to infer for guide {names['guide']!r}: use --guide prior, or "
            "another prior"
        )
    if not has_inference and not prior_facts.has_rsample:
        raise ConfigError(
            f"prior {names['prior']!r} has draws without gradient, so it cannot learn without a guide: use "
            "--guide amortized"
        )
    if config.train.elbo == "trace" and asdict(config.prior).get("temperature"):
        raise ConfigError(
            "relaxed codes have no density for --train.elbo trace: set prior.temperature to 0, or use balanced"
        )
    if config.train.on_policy_depth and model_facts.has_lattice:
        raise ConfigError(
            f"model {names['model']!r} cannot be trained on trajectories of its prior, because their decisions may "
            "exclude every solution: set train.on_policy_depth to 0"
        )
    if model_facts.has_lattice and config.train.elbo != "mean_field":
        raise ConfigError(f"the KL of model {names['model']!r} needs --train.elbo mean_field, not {config.train.elbo}")
    if config.train.exact_targets and not (config.train.act and model_facts.has_lattice):
        raise ConfigError("train.exact_targets is for models with a lattice and needs train.act: set it to false")
    if config.evaluate.sweeps and not model_facts.has_lattice:
        raise ConfigError(f"model {names['model']!r} has no lattice to open again: set evaluate.sweeps to 0")
    if config.evaluate.restarts and not config.heads.hidden:
        raise ConfigError("restarts need the halt head: set heads.hidden, or evaluate.restarts to 0")
    if model_facts.is_one_step:
        _check_one_step(config)
    _check_guided_transitions(config)


def _check_completion(config: RunConfig, task: Task) -> None:
    """Raise ConfigError if the trajectories of a lattice may end before all tokens are decided."""
    if not model_traits(MODELS.get(config.names["model"])).has_lattice:
        return
    tokens = task.spec.output_length
    count = config.prior.count_for(tokens) if hasattr(config.prior, "count_for") else 1
    steps = min(config.train.supervision_steps, config.depth)
    decided = steps * model_sizes(config.model).transitions * count
    if decided < tokens:
        raise ConfigError(
            f"an answer has {tokens} tokens, and train.supervision_steps and evaluate.depth allow {decided} decisions: "
            "raise prior.count, or both of them"
        )


def _check_one_step(config: RunConfig) -> None:
    train, name = config.train, config.names["model"]
    if train.supervision_steps != 1 or train.on_policy_depth:
        raise ConfigError(
            f"model {name!r} answers in one supervision step: set train.supervision_steps to 1 and "
            "train.on_policy_depth to 0"
        )
    if config.evaluate.depth > 1:
        raise ConfigError(f"model {name!r} answers in one supervision step: set evaluate.depth to 1")


def _check_guided_transitions(config: RunConfig) -> None:
    # In training, each supervision step is a separate program, whose transitions are numbered from 0. If
    # `guided_transitions` were less than all transitions of training, the guide would act at other transitions in
    # training than in a full trajectory.
    guided_transitions = asdict(config.guide).get("guided_transitions", 0)
    training_transitions = config.train.supervision_steps * model_sizes(config.model).transitions
    if 0 < guided_transitions < training_transitions:
        raise ConfigError(
            f"guide.guided_transitions = {guided_transitions} is less than the {training_transitions} transitions of "
            "training (train.supervision_steps x model.transitions): set it to that many or more, or to 0"
        )
