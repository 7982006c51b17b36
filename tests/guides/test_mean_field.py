"""Each pair (x, y) has free parameters of the right shape, a posterior made of them, and a key."""

import pytest
import torch
from pyro_gram.guides.mean_field import _key

from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import PriorTraits
from tests.conftest import build_case

FREE = {"guide_name": "mean_field", "guide": {"num_pairs": 8, "initial_scale": 0.3}}


def test_each_pair_has_its_own_parameters_at_each_transition():
    case = build_case(**FREE | {"guide": {**FREE["guide"], "transitions": 4}})
    guide, u = case.solver.guide.train(), torch.randn(5, 4, 16)
    assert (guide.first, guide.guided_transitions) == (0, 4)
    assert guide.loc.shape == guide.log_scale.shape == (8, 4, 4, 16)
    rows = guide.encode(case.x, case.y)
    prior = case.solver.model.prior(u)
    for t in range(4):
        q = guide.posterior_at(t, u, rows, prior)
        torch.testing.assert_close(q.mean, guide.loc[rows, t])
        torch.testing.assert_close(q.stddev, 0.3 * guide.log_scale[rows, t].exp())
        assert (q.batch_shape, q.event_shape) == ((5,), (4, 16))
    assert guide.posterior_at(4, u, rows, prior) is prior
    first_posterior = guide.posterior(u, rows, prior)
    torch.testing.assert_close(first_posterior.mean, guide.loc[rows, 0])
    mixed_posterior = guide.posterior_at(1, u, torch.tensor([-1, 0, 1, 2, 3]), prior)
    assert (mixed_posterior.mean[0] == 0).all()
    torch.testing.assert_close(mixed_posterior.stddev[0], torch.full((4, 16), 0.3))
    torch.testing.assert_close(mixed_posterior.mean[1:], guide.loc[[0, 1, 2, 3], 1])
    expanded_posterior = guide.posterior_at(
        1, u.expand(7, 5, 4, 16), rows, prior
    )  # a plate of trajectories around the data
    torch.testing.assert_close(expanded_posterior.mean, guide.loc[rows, 1].expand(7, 5, 4, 16))


def test_only_the_charged_transition_of_a_truncated_step_has_parameters():
    case = build_case(**FREE, model={"transitions": 3})
    guide, u = case.solver.guide.train(), torch.randn(5, 4, 16)
    assert (guide.first, guide.guided_transitions) == (2, 3)
    assert guide.loc.shape == (8, 1, 4, 16)
    rows, prior = guide.encode(case.x, case.y), case.solver.model.prior(u)
    assert all(guide.posterior_at(t, u, rows, prior) is prior for t in (0, 1, 3))
    for q in (guide.posterior_at(2, u, rows, prior), guide.posterior(u, rows, prior)):
        torch.testing.assert_close(q.mean, guide.loc[rows, 0])
    full_guide = build_case(**FREE, model={"transitions": 3, "truncated": False}).solver.guide
    assert (full_guide.first, full_guide.guided_transitions) == (0, 3)
    assert type(full_guide)(full_guide.Config(transitions=3), case.solver.task.spec, case.solver.model, 16).first == 0


def test_parameters_start_as_those_of_an_unknown_pair():
    case = build_case(**FREE, model={"prefix": 2})
    guide = case.solver.guide
    fresh_guide = type(guide)(guide.Config(num_pairs=8), case.solver.task.spec, case.solver.model, 16)
    assert fresh_guide.loc.shape == (8, 1, 6, 16)
    assert (fresh_guide.loc == 0).all()
    assert (fresh_guide.log_scale == 0).all()
    assert int(fresh_guide.used) == 0
    assert fresh_guide.keys.dtype == fresh_guide.used.dtype == torch.long  # a float would round keys of 64 bits
    rows = fresh_guide.encode(case.x, case.y).tolist()
    assert sorted(rows) == [0, 1, 2, 3, 4]
    assert fresh_guide.eval().encode(case.x, case.y).tolist() == rows


def test_pairs_take_rows_in_order_and_only_in_training():
    case = build_case(**FREE)
    guide = case.solver.guide.eval()
    assert guide.encode(case.x, case.y).tolist() == [-1] * 5
    guide.train()
    first_rows = guide.encode(case.x[:2], case.y[:2])
    assert sorted(first_rows.tolist()) == [0, 1]
    assert int(guide.used) == 2
    all_rows = guide.encode(case.x, case.y)
    assert all_rows[:2].tolist() == first_rows.tolist()
    assert sorted(all_rows.tolist()) == list(range(5))
    assert int(guide.used) == 5
    other_pairs = torch.stack([case.x[0]] * 3), torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]])
    assert sorted(guide.encode(*other_pairs).tolist()) == [5, 6, 7]  # the last three of the eight rows
    with pytest.raises(ConfigError, match="more than 8 pairs"):
        guide.encode(case.x[:1], torch.tensor([[7, 7, 7, 7]]))


def test_the_key_of_a_pair_depends_on_x_and_y():
    case = build_case(**FREE)
    guide = case.solver.guide.train()
    x, y = case.x[:1], torch.tensor([[0, 1, 2, 0]])
    other_x = x.clone()
    other_x[..., -1] += 1
    other_y = torch.tensor([[1, 0, 2, 0]])
    rows = [guide.encode(*pair).item() for pair in ((x, y), (other_x, y), (x, other_y), (x, y))]
    assert rows == [0, 1, 2, 0]
    assert guide.encode(None, y).item() == 3  # without input, the key depends on y alone
    assert guide.encode(None, y).item() == 3


def test_a_key_depends_on_each_token_its_position_and_the_offset():
    tokens = torch.randint(9, (500, 6))
    keys = _key(tokens, 0)
    assert keys.shape == (500,)
    assert keys.dtype == torch.long
    assert len(keys.unique()) == len(tokens.unique(dim=0))
    assert (_key(tokens, 0) == keys).all()
    assert (_key(tokens, 3) != keys).all()
    assert (_key(tokens.flip(-1), 0) != keys).any()
    doubled_tokens = torch.cat(
        (tokens, tokens), -1
    )  # the key of concatenated tokens is the sum of the keys of both parts
    assert (_key(doubled_tokens, 0) == keys + _key(tokens, 6)).all()
    assert _key(torch.zeros(2, 3, 6, dtype=torch.long), 0).shape == (2, 3)
    assert (_key(torch.zeros(1, 6, dtype=torch.long), 0) != 0).all()  # a token 0 contributes to the key


def test_a_prior_without_traits_is_assumed_to_have_gradients():
    case = build_case(**FREE)
    guide, spec, model = case.solver.guide, case.solver.task.spec, case.solver.model
    model.prior = torch.nn.Linear(16, 16)
    assert type(guide)(guide.Config(num_pairs=8), spec, model, 16).first == 1
    model.prior.traits = PriorTraits(has_rsample=False)
    with pytest.raises(ConfigError, match="draws without gradient: set model.truncated to false"):
        type(guide)(guide.Config(num_pairs=8), spec, model, 16)
    assert type(guide)(guide.Config(num_pairs=8, transitions=2), spec, model, 16).first == 0
