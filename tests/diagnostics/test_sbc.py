from functools import cache
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_gram.diagnostics.plots.calibration import sbc_figure
from pyro_gram.diagnostics.sbc import SBCRanks, simulate_ranks
from pyro_gram.errors import ConfigError
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.inference.sites import data_plates, register_parameters
from tests.conftest import build_case, build_small

CLASSES = 4


class Steps(nn.Module):
    """A program with one guidance eps ~ N(0, 1). The answer y tells in which quarter of N(0, 1) eps lies, 0 to 3."""

    def forward(self, x, y=None, state=None, *, steps=1, truncated=None, beta=1.0):
        register_parameters("model", self)
        zero = torch.zeros(*x.shape, 1)
        with data_plates(x.shape[:-1]):
            u = pyro.deterministic("u_0", zero, event_dim=2)
            h = u + pyro.sample("eps_0", dist.Normal(zero, 1.0).to_event(2))
            pyro.deterministic("h", h, event_dim=2)
            pyro.deterministic("l", h, event_dim=2)
            quarter = (torch.special.ndtr(h[..., 0]) * CLASSES).long().clamp(max=CLASSES - 1)
            logits = torch.full((*quarter.shape, CLASSES), -30.0).scatter(-1, quarter[..., None], 0.0)
            return pyro.sample("y", dist.Categorical(logits=logits).to_event(1), obs=y)


class Quarter(EffectGuide):
    """A guide that draws eps from quarter y of N(0, 1). It is exact if ``shift`` is 0 and ``width`` is 1."""

    def __init__(self, model, shift=0.0, width=1.0):
        super().__init__(model)
        self.shift, self.width = shift, width

    def posterior(self, u, code, prior):
        base = dist.Uniform(torch.zeros_like(u), torch.ones_like(u))
        low, size = (code[..., None] + 0.5 * (1 - self.width)) / CLASSES, self.width / CLASSES

        class SliceOfUniform(dist.TorchDistribution):
            has_rsample = True
            arg_constraints: ClassVar = {}
            support = dist.constraints.independent(dist.constraints.real, 2)

            def __init__(self):
                super().__init__(base.batch_shape[:-2], base.batch_shape[-2:], validate_args=False)

            def rsample(self, sample_shape=()):
                return torch.special.ndtri(low + size * base.sample(sample_shape)) + shift

            def log_prob(self, value):
                return torch.zeros(self.batch_shape)

        shift = self.shift
        return SliceOfUniform()


@cache
def quarter_ranks(seed=0, **guide):
    model = Steps()
    x = torch.zeros(300, 1).long()
    return simulate_ranks(model, Quarter(model, **guide), x, depth=1, rounds=2, num_draws=31, seed=seed)


def test_an_exact_guide_has_uniform_ranks():
    result = quarter_ranks()
    assert result.names == ("scale of eps_0", "projection 1 of h", "projection 2 of h", "log p(y|h)")
    assert result.ranks.shape == (4, 600)
    assert result.ranks.min() == 0
    assert result.ranks.max() == 31
    assert (result.deviation < result.band).all()
    for summary in result.summary().values():
        assert summary["mean"] == pytest.approx(0.5, abs=0.05)
        assert summary["spread"] == pytest.approx(1, abs=0.08)


def test_a_shifted_guide_has_shifted_ranks():
    result = quarter_ranks(shift=0.3)
    summary = result.summary()
    projections = [summary[f"projection {i} of h"] for i in (1, 2)]
    assert all(s["deviation"] > 2 * result.band for s in projections)
    # With one channel, a projection is h or -h. So most true values lie on the same side of the guide's draws.
    assert all(abs(s["mean"] - 0.5) > 0.15 for s in projections)


def test_a_narrow_guide_has_ranks_at_both_ends():
    narrow_summary = quarter_ranks(width=0.4).summary()["projection 1 of h"]
    assert narrow_summary["spread"] > 1.3
    assert narrow_summary["deviation"] > 0.2


class IgnoresAnswer(EffectGuide):
    """A guide that samples from the prior, whatever y is."""

    def posterior(self, u, code, prior):
        return prior


def test_only_the_likelihoods_ranks_show_a_guide_that_ignores_y():
    model = Steps()
    result = simulate_ranks(model, IgnoresAnswer(model), torch.zeros(300, 1).long(), depth=1, num_draws=31).summary()
    # The true trajectory is a draw of the prior too, so its projections have uniform ranks.
    assert result["projection 1 of h"]["deviation"] < 0.1
    assert result["log p(y|h)"]["deviation"] > 0.3


def test_the_seed_fixes_the_ranks():
    result = quarter_ranks()
    assert torch.equal(result.ranks, quarter_ranks.__wrapped__().ranks)
    assert not torch.equal(result.ranks, quarter_ranks(seed=5).ranks)


def test_ties_are_broken_at_random():
    result = quarter_ranks()
    ties = result.ranks[result.names.index("log p(y|h)")]  # log p(y|h) is equal for all trajectories that explain y
    assert len(ties.unique()) > 25


def test_uniform_ranks_stay_in_the_band_in_95_percent_of_simulations():
    """The band holds for all summaries together, so more summaries have a wider band."""
    generator = torch.Generator().manual_seed(1)
    bands = []
    for summaries in (1, 6):
        ranks = torch.randint(32, (400, summaries, 64), generator=generator)
        band = SBCRanks((), ranks[0], 31).band
        is_within = [(SBCRanks((), r, 31).deviation <= band).all().item() for r in ranks]
        assert sum(is_within) / 400 == pytest.approx(0.95, abs=0.04)
        bands.append(band)
    assert bands[1] > bands[0] * 1.1


def test_a_guide_without_inference_is_refused():
    case = build_case(prior_name="none", guide_name="prior")
    with pytest.raises(ConfigError, match="this one follows the prior"):
        simulate_ranks(case.solver.model, case.solver.guide, case.x, depth=2)


@pytest.mark.parametrize("prior", ["discrete", "mixture", "flow", "mean_only"])
def test_trajectories_of_every_kind_of_prior_are_ranked(prior):
    case = build_case(prior_name=prior)
    result = simulate_ranks(case.solver.model, case.solver.guide, case.x, depth=2, rounds=1, num_draws=5)
    assert result.ranks.shape == (6, 5)
    assert "scale of eps_3" in result.names


def test_data_without_input_are_ranked():
    solver = build_small(task_name="sudoku_uncond")
    result = simulate_ranks(solver.model, solver.guide, None, depth=2, rounds=7, num_draws=5)
    assert result.ranks.shape == (6, 7)


def test_the_figure_has_a_panel_for_each_summary():
    figure = sbc_figure(quarter_ranks())
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 4
    assert titles[0].startswith("scale of eps_0: deviation 0.0")
