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
from tests.conftest import build_case, build_small, incompatibility

CLASSES = 4


class Steps(nn.Module):
    """One guidance eps ~ N(0, 1), and for an answer the quarter of the distribution that it fell into: noise-free."""

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
    """Draws eps from the quarter that y names: the exact posterior, if ``shift`` is 0 and ``width`` 1."""

    def __init__(self, model, shift=0.0, width=1.0):
        super().__init__(model)
        self.shift, self.width = shift, width

    def posterior(self, u, code, prior):
        base = dist.Uniform(torch.zeros_like(u), torch.ones_like(u))
        low, size = (code[..., None] + 0.5 * (1 - self.width)) / CLASSES, self.width / CLASSES

        class Inside(dist.TorchDistribution):
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
        return Inside()


def simulated(**guide):
    model = Steps()
    return simulate_ranks(model, Quarter(model, **guide), torch.zeros(300, 1).long(), depth=1, rounds=2, num_draws=31)


def test_an_exact_guide_has_uniform_ranks():
    found = simulated()
    assert found.names == ("scale of eps_0", "projection 1 of h", "projection 2 of h", "log p(y|h)")
    assert found.ranks.shape == (4, 600)
    assert found.ranks.min() == 0
    assert found.ranks.max() == 31
    assert (found.deviation < found.band).all()
    for told in found.summary().values():
        assert told["mean"] == pytest.approx(0.5, abs=0.05)
        assert told["spread"] == pytest.approx(1, abs=0.08)


def test_a_shifted_guide_is_found_with_its_direction():
    found = simulated(shift=0.3)
    told = found.summary()
    projected = [told[f"projection {i} of h"] for i in (1, 2)]
    assert all(t["deviation"] > 2 * found.band for t in projected)
    # A projection on one channel is the state, or its negative: the truth is below the guide's, or above.
    assert all(abs(t["mean"] - 0.5) > 0.15 for t in projected)


def test_a_narrow_guide_has_ranks_at_both_ends():
    narrow = simulated(width=0.4).summary()["projection 1 of h"]
    assert narrow["spread"] > 1.3
    assert narrow["deviation"] > 0.2


class Heedless(EffectGuide):
    """Takes no notice of y."""

    def posterior(self, u, code, prior):
        return prior


def test_a_guide_that_takes_no_notice_of_y_is_found_by_the_likelihood_alone():
    model = Steps()
    found = simulate_ranks(model, Heedless(model), torch.zeros(300, 1).long(), depth=1, num_draws=31).summary()
    # The truth is a draw of the prior as well, so that its own summaries have uniform ranks.
    assert found["projection 1 of h"]["deviation"] < 0.1
    assert found["log p(y|h)"]["deviation"] > 0.3


def test_the_truth_is_a_draw_of_the_program_with_an_answer_of_its_own():
    found = simulated()
    again = simulated()
    assert torch.equal(found.ranks, again.ranks)
    model = Steps()
    other = simulate_ranks(model, Quarter(model), torch.zeros(300, 1).long(), depth=1, rounds=2, num_draws=31, seed=5)
    assert not torch.equal(found.ranks, other.ranks)


def test_ranks_fall_among_ties_at_random():
    found = simulated()
    ties = found.ranks[found.names.index("log p(y|h)")]  # the same for every trajectory that explains y
    assert len(ties.unique()) > 25


def test_the_band_holds_uniform_ranks_at_95_of_100_times():
    """Those of all summaries together: with more of them it is wider."""
    generator = torch.Generator().manual_seed(1)
    bands = []
    for summaries in (1, 6):
        ranks = torch.randint(32, (400, summaries, 64), generator=generator)
        band = SBCRanks((), ranks[0], 31).band
        within = [(SBCRanks((), r, 31).deviation <= band).all().item() for r in ranks]
        assert sum(within) / 400 == pytest.approx(0.95, abs=0.04)
        bands.append(band)
    assert bands[1] > bands[0] * 1.1


def test_what_cannot_be_ranked_is_refused():
    case = build_case(prior_name="none", guide_name="prior")
    with pytest.raises(ConfigError, match="looks at no answer"):
        simulate_ranks(case.solver.model, case.solver.guide, case.x, depth=2)


@pytest.mark.parametrize("prior", ["gaussian", "discrete", "student_t", "mixture", "flow", "low_rank", "mean_only"])
def test_ranks_of_every_kind_of_prior(prior):
    assert not incompatibility(prior, "amortized")
    case = build_case(prior_name=prior)
    found = simulate_ranks(case.solver.model, case.solver.guide, case.x, depth=2, rounds=1, num_draws=5)
    assert found.ranks.shape == (6, 5)
    assert "scale of eps_3" in found.names


def test_data_without_input_are_ranked_too():
    solver = build_small(task_name="sudoku_uncond")
    found = simulate_ranks(solver.model, solver.guide, None, depth=2, rounds=7, num_draws=5)
    assert found.ranks.shape == (6, 7)


def test_the_figure_has_a_panel_for_each_summary():
    figure = sbc_figure(simulated())
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 4
    assert titles[0].startswith("scale of eps_0: deviation 0.0")
