import pytest
import torch

from pyro_gram.diagnostics.evidence import GUIDE, NEITHER, PRIOR, Estimate, Evidence, block_counts, evidence, iwae
from tests.conftest import build_case, build_small
from tests.diagnostics.toys import Gaussian, Probit, probit_evidence

X = torch.tensor([[-1.0], [0.0], [0.5], [2.0]])
Y = torch.tensor([[1], [0], [1], [0]])
EXACT = probit_evidence(X, Y)


def probit_estimates(shift=0.6, scale=0.9, guide_samples=2000, prior_samples=2000, **settings):
    model = Probit()
    settings = {"depth": 1, "max_traced": 100_000, **settings}
    return evidence(
        model, Gaussian(model, shift, scale), X, Y, guide_samples=guide_samples, prior_samples=prior_samples, **settings
    )


def test_bounds_rise_from_the_elbo_to_the_exact_evidence():
    model = Probit()
    result = evidence(
        model, Gaussian(model, 1.2, 0.8), X, Y, depth=1, guide_samples=16_384, prior_samples=10, max_traced=10**6
    )
    assert result.counts == (1, 4, 16, 64, 256, 1024, 4096, 16_384)
    means = result.iwae.mean(1)
    assert (means.diff()[:5] > 0).all()
    assert EXACT.mean() - means[0] > 0.05  # the guide is wrong, so its ELBO is clearly lower
    assert (means <= EXACT.mean() + 0.02).all()
    torch.testing.assert_close(result.iwae[-1], EXACT, rtol=0, atol=0.04)


def test_both_estimates_find_the_exact_evidence_within_their_errors():
    result = probit_estimates()
    for estimate in (result.guide, result.prior):
        assert ((estimate.log_p - EXACT).abs() < 4 * estimate.se).all()
        assert (estimate.se < 0.06).all()
    assert result.agrees.all()
    assert result.is_comparable.all()
    assert (result.guide.ess > result.prior.ess).all()
    torch.testing.assert_close(result.log_p, EXACT, rtol=0, atol=0.1)


def test_the_standard_error_is_the_spread_over_seeds():
    runs = [probit_estimates(guide_samples=200, prior_samples=200, seed=s) for s in range(25)]
    for part in ("guide", "prior"):
        spread = torch.stack([getattr(r, part).log_p for r in runs]).std(0)
        error = torch.stack([getattr(r, part).se for r in runs]).mean(0)
        assert ((spread / error - 1).abs() < 0.6).all(), part


def test_a_guide_that_misses_the_posterior_is_not_believed():
    # The guide is so far off and so narrow that its draws miss most of the posterior.
    result = probit_estimates(shift=2.5, scale=0.25, seed=3)
    assert (EXACT - result.guide.log_p > 1).all()
    assert (result.guide.khat > 0.7).all()
    assert result.choices == [PRIOR] * 4
    torch.testing.assert_close(result.log_p, EXACT, rtol=0, atol=0.1)


def test_the_estimate_with_the_smaller_error_is_believed_if_both_can_be_trusted():
    assert probit_estimates(guide_samples=4000, prior_samples=100).choices == [GUIDE] * 4
    assert set(probit_estimates(shift=0.0, scale=1.0, guide_samples=100, prior_samples=4000).choices) == {PRIOR}


def test_without_a_trusted_estimate_the_greater_one_is_reported():
    def estimate(log_p, ess, khat):
        return Estimate(*(torch.tensor([float(v)]) for v in (log_p, 0.1, ess, khat)), 100)

    result = Evidence((1,), torch.zeros(1, 1), estimate(-3, 2, 1.5), estimate(-2, 1, 0.1))
    assert result.choices == [NEITHER]
    assert result.log_p.tolist() == [-2.0]
    assert result.summary()["both_trusted"] == 0


@pytest.mark.parametrize(
    ("guide", "prior", "choice"),
    [
        ((-3.0, 0.1, 0.1), (-5.0, 0.2, 50), GUIDE),  # the prior never hit y
        ((-5.0, 0.1, 0.1), (-3.0, 0.2, 50), PRIOR),  # the guide's draws miss the guidance that leads to y
        ((-3.0, 0.1, 0.9), (-5.0, 0.2, 50), NEITHER),
        ((-5.0, 0.1, 0.1), (-3.0, 0.2, 2), NEITHER),
        ((-3.0, 0.1, 0.1), (-3.1, 0.2, 50), GUIDE),
        ((-3.0, 0.3, 0.1), (-3.1, 0.2, 50), PRIOR),
        ((-3.0, 0.1, 0.9), (-3.1, 0.2, 50), PRIOR),
    ],
)
def test_the_greater_of_two_estimates_that_differ_is_believed_if_it_can_be_trusted(guide, prior, choice):
    def estimate(log_p, error, khat, ess):
        return Estimate(*(torch.tensor([v]) for v in (log_p, error, ess, khat)), 160)

    (a, a_se, khat), (b, b_se, ess) = guide, prior
    result = Evidence((1,), torch.zeros(1, 1), estimate(a, a_se, khat, 100.0), estimate(b, b_se, 0.1, float(ess)))
    assert result.choices == [choice]
    assert result.log_p.item() == pytest.approx({GUIDE: a, PRIOR: b, NEITHER: max(a, b)}[choice])


def test_iwae_is_the_mean_over_disjoint_blocks():
    weights = torch.tensor([[1.0], [3.0], [5.0], [7.0]], dtype=torch.double).log()
    result = iwae(weights, (1, 2, 4))
    expected = torch.tensor(
        [weights.mean(), (torch.tensor(2.0).log() + torch.tensor(6.0).log()) / 2, torch.tensor(4.0).log()]
    )
    torch.testing.assert_close(result[:, 0], expected.double())


def test_block_counts_end_in_the_number_of_weights():
    assert block_counts(1) == (1,)
    assert block_counts(200) == (1, 4, 16, 64, 200)
    assert block_counts(64) == (1, 4, 16, 64)


def test_a_model_without_a_guide_has_only_the_priors_estimate():
    case = build_case(prior_name="none", guide_name="prior")
    result = evidence(case.solver.model, None, case.x, case.y, depth=2, guide_samples=8, prior_samples=30)
    assert result.guide is None
    assert "khat_above" not in result.summary()
    # The model is deterministic: all trajectories are the same, so the estimate has no error.
    assert set(result.choices) == {PRIOR}
    torch.testing.assert_close(result.prior.se, torch.zeros(5).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", ["sudoku_uncond", "nqueens"])
def test_evidence_is_repeatable_and_independent_of_beta(task):
    calls = []
    solver = build_small(task_name=task)
    x, y = solver.task.split("train").sample_pairs(3, torch.Generator().manual_seed(0))
    settings = {"depth": 2, "guide_samples": 30, "prior_samples": 30}
    solver.model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    result = evidence(solver.model, solver.guide, x, y, **settings)
    assert calls
    assert {kwargs.get("beta", 1.0) for kwargs in calls} == {1.0}
    assert result.iwae.shape == (4, 3)
    assert (result.guide.log_p < 0).all()
    repeated_result = evidence(solver.model, solver.guide, x, y, **settings)
    torch.testing.assert_close(repeated_result.log_p, result.log_p)


def test_estimates_are_written_for_each_pair():
    result = probit_estimates(guide_samples=100, prior_samples=100).to_dict()
    assert len(result["guide"]["khat"]) == len(result["believed"]) == 4
    assert sum(result["summary"]["believed"].values()) == 4
