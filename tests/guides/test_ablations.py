"""In each ablation guide y enters as described, and priors and guides that do not fit together are refused."""

import itertools

import pytest
import torch

from pyro_gram.build import build
from pyro_gram.diagnostics.bounds import terms
from pyro_gram.errors import ConfigError
from pyro_gram.registry import GUIDES, PRIORS
from pyro_gram.training.dry_run import dry_run
from tests.conftest import build_case, build_small, incompatibility, perturb_, small_config
from tests.training.test_trainer import make_trainer


def posterior_of(case, y=None):
    guide, model = case.solver.guide, case.solver.model
    y = case.y if y is None else y
    u = torch.randn(5, 4, 16)
    with torch.no_grad():
        return guide.posterior(u, guide.encode(case.x, y), model.prior(u)), u


def change_last_token(case):
    """Return y with another last token."""
    y = case.y.clone()
    y[:, -1] = (y[:, -1] + 1) % 3
    return y


@pytest.mark.parametrize(("guide", "changes_everywhere"), [("amortized", False), ("additive", False), ("global", True)])
def test_only_a_global_code_carries_a_token_to_all_positions(guide, changes_everywhere):
    case = build_case(guide_name=guide)
    torch.manual_seed(0)
    old_posterior, _ = posterior_of(case)
    torch.manual_seed(0)
    new_posterior, _ = posterior_of(case, change_last_token(case))
    is_changed = (old_posterior.mean - new_posterior.mean).abs().amax((0, 2)) > 1e-6
    assert bool(is_changed[-1])
    assert bool(is_changed[:-1].all()) == changes_everywhere
    assert bool(is_changed[:-1].any()) == changes_everywhere


def test_the_global_code_is_the_same_at_every_position():
    case = build_case(guide_name="global")
    code = case.solver.guide.encode(case.x, case.y)
    assert code.shape == (5, 1, 16)
    q, u = posterior_of(case)
    with torch.no_grad():
        q_of_two = case.solver.guide.posterior(u[:2], code[:2], case.solver.model.prior(u[:2]))
    torch.testing.assert_close(q_of_two.mean, q.mean[:2])  # a batch may have fewer inputs than positions


def test_the_residual_guide_moves_with_the_prior():
    case = build_case(guide_name="residual")
    q, u = posterior_of(case)
    prior = case.solver.model.prior
    with torch.no_grad():
        prior.head.mlp.down.weight[:16] += 0.1  # the weights of the mean
    with torch.no_grad():
        guide = case.solver.guide
        new_posterior = guide.posterior(u, guide.encode(case.x, case.y), prior(u))
    old_mean = q.mean
    shift = new_posterior.mean - old_mean
    assert shift.abs().max() > 1e-3
    torch.testing.assert_close(new_posterior.stddev, q.stddev)


def test_without_an_inference_network_every_kl_is_zero():
    case = build_case(guide_name="prior")
    bound = terms(case.solver.model, case.solver.guide, case.x, case.y)
    assert (bound.kl == 0).all()
    assert sum(p.numel() for p in case.solver.guide.parameters()) == 0


def test_free_parameters_belong_to_their_pair():
    case = build_case(guide_name="mean_field", guide={"num_pairs": 6})
    guide = case.solver.guide
    guide.train()
    rows = guide.encode(case.x, case.y)
    assert sorted(rows.tolist()) == list(range(5))
    assert (guide.encode(case.x.flip(0), case.y.flip(0)) == rows.flip(0)).all()
    expanded_rows = guide.encode(case.x.expand(3, *case.x.shape), case.y.expand(3, *case.y.shape))
    assert (expanded_rows == rows).all()
    guide.eval()
    assert (guide.encode(case.x, change_last_token(case)) == -1).sum() >= 4  # a pair that was never trained has no row
    q, _ = posterior_of(case, change_last_token(case))
    is_known = guide.encode(case.x, change_last_token(case)) >= 0
    assert (q.mean[~is_known] == 0).all()
    guide.train()
    with pytest.raises(ConfigError, match=r"more than 6 pairs.*guide\.num_pairs"):
        guide.encode(case.x, change_last_token(case))


def test_the_rows_of_pairs_survive_a_checkpoint():
    case = build_case(guide_name="mean_field", guide={"num_pairs": 6})
    guide = case.solver.guide
    guide.train()
    rows = guide.encode(case.x, case.y)
    copy = build_case(guide_name="mean_field", guide={"num_pairs": 6}).solver.guide
    copy.load_state_dict(guide.state_dict())
    copy.eval()
    assert (copy.encode(case.x, case.y) == rows).all()


MISMATCHED_PARTS = [
    (
        {"prior_name": "none", "guide_name": "amortized"},
        "'none' leaves nothing to infer.*prior, or another prior",
    ),
    ({"prior_name": "mixture", "guide_name": "prior"}, "'mixture' has draws without gradient.*--guide amortized"),
    ({"prior_name": "discrete", "guide_name": "mean_field"}, "guides for this prior are not"),
    ({"model_name": "direct", "prior_name": "gaussian"}, "'direct' has no guidance.*--prior none"),
    ({"model_name": "direct", "guide_name": "amortized"}, "'direct' has no guidance.*--guide prior"),
    ({"model_name": "vae", "guide_name": "replay"}, "runs a recursive core, and VAE has none"),
    ({"model_name": "vae", "train": {"supervision_steps": 2}}, "'vae' answers in one supervision step"),
    ({"model_name": "mdlm", "evaluate": {"depth": 4}}, r"'mdlm' answers in one.*evaluate\.depth"),
    (
        {"prior_name": "discrete", "prior": {"temperature": 1.0}, "train": {"elbo": "trace"}},
        "relaxed codes have no density",
    ),
    ({"guide_name": "mean_field", "guide": {"transitions": 1}}, r"guide.transitions = 1 is less than the 2"),
    ({"model_name": "looped", "train": {"on_policy_depth": 4}}, r"'looped' answers in one.*train\.on_policy"),
]


PAIRS = [
    (p, g, incompatibility(p, g)) for p, g in itertools.product(PRIORS.names(), GUIDES.names()) if incompatibility(p, g)
]


@pytest.mark.parametrize(("prior", "guide", "message"), PAIRS)
def test_priors_and_guides_that_do_not_fit_are_refused_before_training(prior, guide, message):
    with pytest.raises(ConfigError, match=message):
        dry_run(make_trainer(build_small(prior_name=prior, guide_name=guide)))


@pytest.mark.parametrize("guide", ["amortized", "additive", "global", "residual"])
def test_max_kl_limits_the_kl_of_every_guide_that_has_it(guide):
    case = build_case(guide_name=guide, guide={"max_kl": 0.5})
    for module in (case.solver.guide, case.solver.model.prior):
        perturb_(module, 0.3)
    kl = terms(case.solver.model, case.solver.guide, case.x, case.y, truncated=False).kl
    assert (kl <= 0.5 * 1.03).all()
    assert (kl > 0.1).any()


@pytest.mark.parametrize(("settings", "message"), MISMATCHED_PARTS)
def test_parts_that_do_not_fit_are_refused_when_they_are_built(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(small_config(**settings))


def test_a_guide_that_ends_before_the_trajectory_has_a_bound():
    case = build_case(prior_name="mixture", guide={"guided_transitions": 4})
    bound = terms(case.solver.model, case.solver.guide, case.x, case.y, steps=3, truncated=False)
    assert bound.kl.shape == (6, 5)
    assert (bound.kl[4:] == 0).all()
    assert (bound.kl[:4] != 0).all()
    assert torch.isfinite(bound.elbo).all()


def test_free_parameters_follow_the_prior_at_transitions_without_a_kl():
    case = build_case(guide_name="mean_field", guide={"num_pairs": 6})
    guide = case.solver.guide
    assert (guide.first, guide.guided_transitions) == (1, 2)  # only the second of T = 2 transitions has a KL
    guide.train()
    bound = terms(case.solver.model, guide, case.x, case.y, truncated=False)
    assert (bound.kl[0] == 0).all()
    assert (bound.kl[1] > 0).all()
