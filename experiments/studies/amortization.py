"""Measure the amortization gap: compare a trained guide with guides that are fitted to the measured pairs.

The model is fixed. On held-out pairs (x, y) the full ELBO (Eq. 13) of the trained guide is compared with the ELBOs of
two guides that SVI fits to these pairs. One is a copy of the trained guide. The other is a mean-field guide, which
starts at the trained guide's means and scales and does not see the state u_t. All three ELBOs lie below log p(y | x).
The amortization gap is the ELBO of the copy minus the ELBO of the trained guide. The approximation gap is log p(y | x)
minus the ELBO of the copy.

    python experiments/studies/amortization.py --checkpoint checkpoints/coloring.safetensors
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro_gram.guides.mean_field import MeanFieldGuide, MeanFieldGuideConfig
from torch import Tensor, nn
from tqdm import trange

from experiments.tables.cells import write_study
from pyro_gram.checkpoint import load
from pyro_gram.diagnostics.likelihood import prior_log_likelihood
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import guide_traits
from pyro_gram.inference.elbo import MeanFieldELBO
from pyro_gram.inference.importance import guide_draws, log_evidence
from pyro_gram.inference.sites import transition_index
from pyro_gram.system.cli import Parser, add_trust_option, call
from pyro_gram.system.files import check_writable
from pyro_gram.tasks.batches import generator_for

HERE = Path(__file__).parent
DRAWS = 200  # number of trajectories of each pair (x, y) in every bound
PRIOR_DRAWS = 4000  # number of trajectories of each pair in the estimate of log p(y | x)
PARTICLES = 8  # number of trajectories of each pair in an update
COPY_LR = 1e-3  # learning rate of the copy: small, because the copy starts from trained weights


def mean_field_at(guide: nn.Module, model: Any, x: Tensor, y: Tensor, steps: int) -> MeanFieldGuide:
    """Return a mean-field guide that starts at the posteriors of ``guide`` along one drawn trajectory."""
    with torch.no_grad(), pyro.validation_enabled(False):
        trace = poutine.trace(guide).get_trace(x, y, steps=steps, truncated=False)
    posteriors = {
        transition_index(name): site["fn"] for name, site in trace.nodes.items() if transition_index(name) is not None
    }
    config = MeanFieldGuideConfig(num_pairs=len(y), transitions=len(posteriors))
    mean_field_guide = MeanFieldGuide(config, model.spec, model, model.config.width)
    mean_field_guide.train()
    rows = mean_field_guide.encode(x, y)
    with torch.no_grad():
        for t, q in posteriors.items():
            length = q.event_shape[0]  # without padding
            mean_field_guide.loc[rows, t, :length] = q.base_dist.loc
            mean_field_guide.log_scale[rows, t, :length] = (q.base_dist.scale / config.initial_scale).log()
    return mean_field_guide


def fit(guide: nn.Module, model: nn.Module, x: Tensor, y: Tensor, steps: int, updates: int, lr: float) -> None:
    """Fit a guide to the pairs (x, y) by maximizing their full ELBO. The model stays fixed."""
    for p in model.parameters():
        p.requires_grad_(False)
    guide.train()
    elbo = MeanFieldELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    adam = torch.optim.Adam(guide.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, updates)
    with pyro.validation_enabled(False):
        for _ in trange(updates, desc="fit", file=sys.stderr):
            adam.zero_grad()
            elbo.differentiable_loss(model, guide, x, y, steps=steps, truncated=False).backward()
            adam.step()
            schedule.step()
    guide.eval()


def bounds_of(model: nn.Module, guide: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Tensor]:
    """Return the ELBO and the importance-weighted bound of each pair, nats, ``[B]``."""
    draws = guide_draws(model, guide, x, y, steps=steps, num_samples=DRAWS, seed=1)
    return {"elbo": draws.log_weight.mean(0), "iwae": log_evidence(draws.log_weight)}


def summary(values: Tensor) -> dict[str, float]:
    """Return the mean over pairs, and the standard error of this mean."""
    return {"mean": values.mean().item(), "se": (values.std() / len(values) ** 0.5).item()}


def markdown(study: dict[str, Any]) -> str:
    """Return a Markdown table of the bounds and the two gaps between them."""
    bounds, log_p = study["bounds"], study["log_p_prior_mc"]
    rows = [
        ("ELBO, the trained guide", bounds["guide"]["elbo"]),
        (f"its importance-weighted bound, {study['draws']} draws", bounds["guide"]["iwae"]),
        (f"ELBO, a copy of the guide fitted to these pairs, {study['updates']} updates", bounds["copy"]["elbo"]),
        ("its importance-weighted bound", bounds["copy"]["iwae"]),
        (f"ELBO, mean field fitted to these pairs, {study['updates']} updates", bounds["mean_field"]["elbo"]),
        ("its importance-weighted bound", bounds["mean_field"]["iwae"]),
        (f"log p(y\\|x), {log_p['draws']:,} trajectories of the prior", log_p),
        ("amortization gap: ELBO of the copy minus that of the guide", study["amortization_gap"]),
        ("approximation gap: log p minus ELBO of the copy", study["approximation_gap"]),
    ]
    lines = [
        f"| `{study['checkpoint']}`, {study['inputs']} held-out pairs, {study['depth']} steps | nats a pair |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| {label} | {v['mean']:.2f} ± {v['se']:.2f} |" for label, v in rows)])


def main(argv: list[str]) -> int:
    parser = Parser("amortization.py", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="PATH")
    parser.add_argument("--inputs", type=int, default=24, help="held-out pairs (default 24)")
    parser.add_argument("--depth", type=int, default=4, help="supervision steps of a trajectory (default 4)")
    parser.add_argument("--updates", type=int, default=400, help="updates in each fit (default 400)")
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate of the mean-field guide (default 0.02)")
    parser.add_argument("--out", type=Path, default=HERE / "amortization.json", metavar="FILE")
    add_trust_option(parser)
    arguments = parser.parse_args(argv)
    for name in ("inputs", "depth", "updates"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    check_writable(arguments.out)
    solver = load(arguments.checkpoint, trust_code=arguments.trust_code)
    model, guide = solver.model, solver.guide
    puzzles = solver.task.split("test")
    x, y = puzzles.sample_pairs(arguments.inputs, generator_for(1, arguments.inputs))
    if x is None or guide_traits(guide).follows_prior:
        raise ConfigError("this study needs a task with inputs and a guide with an inference network")
    x, y = solver.task.spec.crop(x, y)
    bounds = {"guide": bounds_of(model, guide, x, y, arguments.depth)}
    mean_field_guide = mean_field_at(guide, model, x, y, arguments.depth)
    fit(mean_field_guide, model, x, y, arguments.depth, arguments.updates, arguments.lr)
    bounds["mean_field"] = bounds_of(model, mean_field_guide, x, y, arguments.depth)
    same_model, copy_of_guide = copy.deepcopy((model, guide))
    fit(copy_of_guide, same_model, x, y, arguments.depth, arguments.updates, COPY_LR)
    bounds["copy"] = bounds_of(same_model, copy_of_guide, x, y, arguments.depth)
    log_p = prior_log_likelihood(model, x, y, depth=arguments.depth, num_samples=PRIOR_DRAWS, seed=2)
    results = {
        "checkpoint": Path(arguments.checkpoint).stem,
        **{name: getattr(arguments, name) for name in ("inputs", "depth", "updates", "lr")},
        "draws": DRAWS,
        "bounds": {name: {k: summary(v) for k, v in values.items()} for name, values in bounds.items()},
        "log_p_prior_mc": summary(log_p) | {"draws": PRIOR_DRAWS},
        "amortization_gap": summary(bounds["copy"]["elbo"] - bounds["guide"]["elbo"]),
        "approximation_gap": summary(log_p - bounds["copy"]["elbo"]),
    }
    for name in ("amortization_gap", "approximation_gap"):
        print(f"{name.replace('_', ' ')}: {results[name]['mean']:.2f} ± {results[name]['se']:.2f} nats a pair")
    write_study(arguments.out, results, markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
