import pytest
import torch

from pyro_gram.diagnostics.evidence import GUIDE, NEITHER, PRIOR, Estimate, Evidence, block_counts, evidence, iwae
from tests.conftest import build_case, build_small
from tests.diagnostics.toys import Gaussian, Probit, probit_evidence

X = torch.tensor([[-1.0], [0.0], [0.5], [2.0]])
Y = torch.tensor([[1], [0], [1], [0]])
EXACT = probit_evidence(X, Y)


def toy(shift=0.6, scale=0.9, guide_samples=2000, prior_samples=2000, **settings):
    model = Probit()
    settings = {"depth": 1, "max_traced": 100_000, **settings}
    return evidence(
        model, Gaussian(model, shift, scale), X, Y, guide_samples=guide_samples, prior_samples=prior_samples, **settings
    )


def test_bounds_rise_from_the_elbo_to_the_exact_evidence():
    model = Probit()
    found = evidence(
        model, Gaussian(model, 1.2, 0.8), X, Y, depth=1, guide_samples=65_536, prior_samples=10, max_traced=10**6
    )
    assert found.counts == (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)
    means = found.iwae.mean(1)
    assert (means.diff()[:5] > 0).all()
    assert EXACT.mean() - means[0] > 0.05  # the guide is wrong by that much
    assert (means <= EXACT.mean() + 0.01).all()
    torch.testing.assert_close(found.iwae[-1], EXACT, rtol=0, atol=0.02)


def test_both_ends_find_the_exact_evidence_within_their_errors():
    found = toy()
    for estimate in (found.guide, found.prior):
        assert ((estimate.log_p - EXACT).abs() < 4 * estimate.se).all()
        assert (estimate.se < 0.06).all()
    assert found.agrees.all()
    assert found.is_comparable.all()
    assert (found.guide.ess > found.prior.ess).all()
    torch.testing.assert_close(found.log_p, EXACT, rtol=0, atol=0.1)


def test_the_standard_error_is_the_spread_over_seeds():
    runs = [toy(guide_samples=200, prior_samples=200, seed=s) for s in range(60)]
    for part in ("guide", "prior"):
        spread = torch.stack([getattr(r, part).log_p for r in runs]).std(0)
        told = torch.stack([getattr(r, part).se for r in runs]).mean(0)
        assert ((spread / told - 1).abs() < 0.4).all(), part


def test_a_guide_that_misses_the_posterior_is_not_believed():
    # So far out, and so narrow, that no draw of it has seen most of the posterior.
    found = toy(shift=2.5, scale=0.25, seed=3)
    assert (EXACT - found.guide.log_p > 1).all()
    assert (found.guide.khat > 0.7).all()
    assert found.choices == [PRIOR] * 4
    torch.testing.assert_close(found.log_p, EXACT, rtol=0, atol=0.1)


def test_the_estimate_of_the_smaller_error_is_believed_where_both_hold():
    assert toy(guide_samples=4000, prior_samples=100).choices == [GUIDE] * 4
    assert set(toy(shift=0.0, scale=1.0, guide_samples=100, prior_samples=4000).choices) == {PRIOR}


def test_where_neither_holds_the_greater_is_told():
    def estimate(log_p, ess, khat):
        return Estimate(*(torch.tensor([float(v)]) for v in (log_p, 0.1, ess, khat)), 100)

    found = Evidence((1,), torch.zeros(1, 1), estimate(-3, 2, 1.5), estimate(-2, 1, 0.1))
    assert found.choices == [NEITHER]
    assert found.log_p.tolist() == [-2.0]
    assert found.summary()["both_trusted"] == 0


@pytest.mark.parametrize(
    ("guide", "prior", "believed"),
    [
        ((-3.0, 0.1, 0.1), (-5.0, 0.2, 50), GUIDE),  # the prior never hit y
        ((-5.0, 0.1, 0.1), (-3.0, 0.2, 50), PRIOR),  # the guide never visits where y comes from
        ((-3.0, 0.1, 0.9), (-5.0, 0.2, 50), NEITHER),
        ((-5.0, 0.1, 0.1), (-3.0, 0.2, 2), NEITHER),
        ((-3.0, 0.1, 0.1), (-3.1, 0.2, 50), GUIDE),
        ((-3.0, 0.3, 0.1), (-3.1, 0.2, 50), PRIOR),
        ((-3.0, 0.1, 0.9), (-3.1, 0.2, 50), PRIOR),
    ],
)
def test_of_two_that_differ_the_greater_is_believed_if_it_can_be_trusted(guide, prior, believed):
    def estimate(log_p, error, khat, ess):
        return Estimate(*(torch.tensor([v]) for v in (log_p, error, ess, khat)), 160)

    (a, a_se, khat), (b, b_se, ess) = guide, prior
    found = Evidence((1,), torch.zeros(1, 1), estimate(a, a_se, khat, 100.0), estimate(b, b_se, 0.1, float(ess)))
    assert found.choices == [believed]
    assert found.log_p.item() == pytest.approx({GUIDE: a, PRIOR: b, NEITHER: max(a, b)}[believed])


def test_iwae_is_the_mean_over_disjoint_blocks():
    weights = torch.tensor([[1.0], [3.0], [5.0], [7.0]], dtype=torch.double).log()
    found = iwae(weights, (1, 2, 4))
    expected = torch.tensor(
        [weights.mean(), (torch.tensor(2.0).log() + torch.tensor(6.0).log()) / 2, torch.tensor(4.0).log()]
    )
    torch.testing.assert_close(found[:, 0], expected.double())


def test_block_counts_end_in_all_of_them():
    assert block_counts(1) == (1,)
    assert block_counts(200) == (1, 4, 16, 64, 200)
    assert block_counts(64) == (1, 4, 16, 64)


def test_a_model_without_a_guide_has_the_priors_estimate_alone():
    case = build_case(prior_name="none", guide_name="prior")
    found = evidence(case.solver.model, None, case.x, case.y, depth=2, guide_samples=8, prior_samples=30)
    assert found.guide is None
    assert "khat_above" not in found.summary()
    # A deterministic model: every trajectory is the same, and one of them would do.
    assert set(found.choices) == {PRIOR}
    torch.testing.assert_close(found.prior.se, torch.zeros(5).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", ["sudoku_uncond", "nqueens"])
def test_evidence_of_every_task_repeats_and_holds_no_beta_of_training(task):
    seen = []
    solver = build_small(task_name=task)
    x, y = solver.task.split("train").sample_pairs(3, torch.Generator().manual_seed(0))
    settings = {"depth": 2, "guide_samples": 30, "prior_samples": 30}
    solver.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    found = evidence(solver.model, solver.guide, x, y, **settings)
    assert seen
    assert {kwargs.get("beta", 1.0) for kwargs in seen} == {1.0}
    assert found.iwae.shape == (4, 3)
    assert (found.guide.log_p < 0).all()
    again = evidence(solver.model, solver.guide, x, y, **settings)
    torch.testing.assert_close(again.log_p, found.log_p)


def test_the_figures_of_each_pair_can_be_written():
    found = toy(guide_samples=100, prior_samples=100).to_dict()
    assert len(found["guide"]["khat"]) == len(found["believed"]) == 4
    assert sum(found["summary"]["believed"].values()) == 4
