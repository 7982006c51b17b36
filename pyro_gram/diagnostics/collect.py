"""Trajectories of the guide and of the prior, as the groups of an InferenceData.

``chain`` is an independent batch of trajectories, ``draw`` a trajectory, ``instance`` an input, ``transition`` one step
of the recursion and ``step`` one supervision step, which is T transitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_gram.diagnostics.inference_data import from_groups
from pyro_gram.diagnostics.metrics import solution_ids
from pyro_gram.inference.guide import why_no_guide
from pyro_gram.inference.importance import MAX_TRACED, guidance_scale, guide_draws
from pyro_gram.inference.sites import ANSWER, HALT, VALUE, transition_index
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.rollout import isolated_rng, rollout_steps, to_device_of
from pyro_gram.tasks.base import PuzzleSet, Task
from pyro_gram.tasks.batches import derive_seed, generator_for

STATE_INSTANCES = 2  # the final state is large: kept for this many inputs
PROJECTIONS = 2
DIMS = {
    "guidance": ["instance", "transition"],
    "path": ["instance", "step", "projection"],
    "h": ["state_instance", "latent_position", "channel"],
    "kl": ["instance", "transition"],
    "log_p_y": ["instance"],
    "log_weight": ["instance"],
    "score": ["instance", "step"],
    "halt": ["instance", "step"],
    "value": ["instance", "step"],
    "y": ["instance", "position"],
    "violations": ["instance"],
    "valid": ["instance"],
    "solution": ["instance"],
    "num_solutions": ["instance"],
}
UNITS = {
    "guidance": "root mean square of eps_t over positions and channels",
    "path": "projections of h after a supervision step on fixed random unit directions",
    "h": "final high-level state h_T",
    "kl": "nats, KL(q || p) of one transition",
    "log_p_y": "nats, log p(y | h_T)",
    "log_weight": "nats, log p(y, tau | x) - log q(tau | x, y)",
    "score": "nats, log p(y_hat | h) after a supervision step; of diffusion models, of the path to y_hat",
    "halt": "P(the answer after a supervision step is right), by the halt head",
    "value": "how right the trajectory's last answer will be, by the value head after a supervision step",
    "solution": "index among the input's solutions, -1 for none of them",
    "violations": "number of violated constraints",
    "valid": "1 where the answer is right",
    "num_solutions": "solutions of the input, where all are known",
}

Groups = dict[str, dict[str, Any]]


def collect(
    task: Task,
    model: nn.Module,
    guide: nn.Module,
    puzzles: PuzzleSet,
    *,
    depth: int,
    inputs: int = 32,
    chains: int = 4,
    draws: int = 25,
    seed: int = 0,
) -> Any:
    """The guide's and the prior's trajectories on the first ``inputs`` puzzles, each with one target drawn uniformly.

    Without input (p(x)) an instance is a datum for the guide; the prior's trajectories belong to no datum, and its
    groups have one instance.

    Groups ``posterior``, ``posterior_predictive``, ``log_likelihood`` and ``sample_stats`` come from the guide, which
    has seen y, and say nothing about accuracy (none of them where ``why_no_guide``); ``prior``,
    ``prior_predictive`` and ``sample_stats_prior`` from fresh trajectories of the prior as it is, without temper.
    """
    puzzles = puzzles.subset(inputs)
    x, y = puzzles.sample_pairs(inputs, generator_for(seed, len(puzzles)))
    found: list[Groups] = []
    for chain in range(chains):
        groups = _prior(task, model, puzzles, depth=depth, draws=draws, seed=derive_seed(seed, chain, 0))
        if not why_no_guide(model, guide):
            groups |= _guide(task, model, guide, puzzles, y, depth=depth, draws=draws, seed=derive_seed(seed, chain, 1))
        found.append(groups)
    stacked: Groups = {g: {k: np.stack([f[g][k] for f in found]) for k in found[0][g]} for g in found[0]}
    stacked["observed_data"] = {"y": y}
    if task.is_checkable:
        stacked["observed_data"]["violations"] = task.violations(x, y)
    dims = dict(DIMS)
    if x is not None:
        stacked["constant_data"] = {"x": x, "num_solutions": puzzles.num_solutions}
        dims["x"] = ["instance", "position_in"] + ["feature"] * (x.ndim - 2)
    return from_groups(stacked, dims, UNITS)


def _guide(
    task: Task, model: nn.Module, guide: nn.Module, puzzles: PuzzleSet, y: Tensor, *, depth: int, draws: int, seed: int
) -> Groups:
    max_traced = chunk_size(task.spec.input_length, MAX_TRACED)
    x, y = to_device_of(model, puzzles.inputs), to_device_of(model, y)
    q = guide_draws(model, guide, x, y, steps=depth, num_samples=draws, seed=seed, max_traced=max_traced)
    return {
        "posterior": {"guidance": q.guidance.permute(1, 2, 0), "h": q.h[:, :STATE_INSTANCES]},
        "posterior_predictive": _decoded(task, puzzles, q.tokens),
        "log_likelihood": {"log_p_y": q.log_likelihood},
        "sample_stats": {"log_weight": q.log_weight, "kl": q.kl.permute(1, 2, 0)},
    }


class _GuidanceScale(Messenger):
    """Notes the scale of each transition's guidance as it passes, ``[...]`` each."""

    def __init__(self) -> None:
        super().__init__()
        self.by_transition: list[Tensor] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if transition_index(msg["name"]) is not None:
            self.by_transition.append(guidance_scale(msg["value"]))


def _prior(task: Task, model: nn.Module, puzzles: PuzzleSet, *, depth: int, draws: int, seed: int) -> Groups:
    x, shape = to_device_of(model, puzzles.inputs), (draws, len(puzzles))
    by_step: dict[str, list[Tensor]] = {}
    with isolated_rng(model, x), _GuidanceScale() as scale:
        torch.manual_seed(seed)
        for end in rollout_steps(model, x, depth=depth, num_samples=draws):
            tokens, h = end.values[ANSWER], end.state.h
            said = {"path": project(h), "score": end.likelihood.log_prob(tokens)}
            said |= {name: end.values[name] for name in (HALT, VALUE) if name in end.values}
            for name, values in said.items():
                by_step.setdefault(name, []).append(_spread(values, shape, DIMS[name][2:]))
    steps = {name: torch.stack(values, 2) for name, values in by_step.items()}
    prior = {"path": steps.pop("path"), "h": _spread(h, shape, DIMS["h"][1:])[:, :STATE_INSTANCES]}
    if scale.by_transition:
        prior["guidance"] = torch.stack([t.expand(shape).cpu() for t in scale.by_transition], 2)
    return {"prior": prior, "prior_predictive": _decoded(task, puzzles, tokens.cpu()), "sample_stats_prior": steps}


def _spread(values: Tensor, shape: tuple[int, int], event: list[str]) -> Tensor:
    """Values of trajectories and inputs, also where all trajectories share them; ``event`` dimensions follow."""
    return values.expand(*shape, *values.shape[values.dim() - len(event) :]).cpu()


def project(h: Tensor, count: int = PROJECTIONS) -> Tensor:
    """States ``[..., L, D]`` on ``count`` directions that are the same in every call: ``[..., count]``."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(h.shape[-2] * h.shape[-1], count, generator=generator).to(h)
    return h.flatten(-2) @ (directions / directions.norm(dim=0))


def _decoded(task: Task, puzzles: PuzzleSet, tokens: Tensor) -> dict[str, Any]:
    decoded: dict[str, Any] = {"y": tokens}
    if task.is_checkable:
        broken = task.violations(puzzles.inputs, tokens)
        decoded |= {"violations": broken, "valid": (broken == 0).long()}
    if puzzles.has_all_solutions:
        decoded["solution"] = solution_ids(task, puzzles, tokens)
    return decoded
