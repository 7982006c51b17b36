"""Halting and carry: a trajectory keeps its place until it is over."""

import pytest
import torch

from pyro_gram.errors import ConfigError
from pyro_gram.inference.terms import StepTerms
from pyro_gram.networks.core import LatentState
from pyro_gram.training import act
from pyro_gram.training.act import Places
from tests.conftest import build_case, build_small
from tests.training.test_training import make_trainer


def terms(halted, value=7.0):
    state = LatentState(torch.full((len(halted), 3, 4), value), torch.full((len(halted), 3, 4), -value))
    zeros = torch.zeros(len(halted))
    return StepTerms(zeros, torch.zeros(0, len(halted)), state, torch.tensor(halted), zeros, zeros)


class Start:
    def initial_state(self, e_x):
        return LatentState(torch.zeros_like(e_x), torch.ones_like(e_x))


def test_a_place_takes_the_next_pair_when_its_trajectory_is_over_and_not_before():
    torch.manual_seed(1)  # nobody explores
    x, y = torch.arange(3)[:, None], torch.arange(3)[:, None]
    places = Places.new(x, y).after(terms([True, False, False]), most=4)
    assert places.over.tolist() == [True, False, False]
    places = places.refilled(Start(), x + 10, y + 10)
    assert places.x.flatten().tolist() == places.y.flatten().tolist() == [10, 1, 2]
    assert places.steps.tolist() == [0, 1, 1]
    assert (places.state.h[0] == 0).all()
    assert (places.state.l[0] == 1).all()
    assert (places.state.h[1:] == 7).all()


def test_no_trajectory_goes_on_for_longer_than_the_most():
    places = Places.new(None, torch.zeros(2, 1, dtype=torch.long))
    for step in range(1, 4):
        places = places.after(terms([False, False]), most=3)
        assert places.over.tolist() == [step == 3] * 2


def test_some_trajectories_must_explore_for_at_least_two_steps():
    torch.manual_seed(0)
    places = Places.new(None, torch.zeros(5000, 1, dtype=torch.long)).after(terms([True] * 5000), most=8)
    assert 0.07 < (~places.over).float().mean() < 0.13


def test_each_update_of_a_run_is_one_batch_and_goes_on_from_the_last():
    trainer = make_trainer(build_small(model_name="trm"), batches=6, supervision_steps=2)
    seen = []
    plain = trainer.batches

    def batches(number):
        x, y = plain(number)
        seen.append(x)
        return x, y

    trainer.batches = batches
    reports = list(trainer.run())
    assert len(reports) == trainer.optim.update == len(seen) == 6
    assert trainer.places.steps.max() <= 2
    # With two steps at the most and heads that start by never halting, every other batch is a new one.
    assert torch.equal(trainer.places.x, seen[4])


def test_a_model_that_never_halts_is_refused():
    with pytest.raises(ConfigError, match=r"act needs a model that says which.*'halted'"):
        make_trainer(build_small(), act=True).rehearse()
    with pytest.raises(ConfigError, match="no on-policy part"):
        make_trainer(build_small(model_name="trm"), act=True, on_policy_depth=4)


def test_a_program_without_the_site_is_named():
    zeros, state = torch.zeros(2), LatentState(torch.zeros(2), torch.zeros(2))
    terms = StepTerms(zeros, torch.zeros(0, 2), state, None, zeros, zeros)
    with pytest.raises(ConfigError, match="site 'halted'"):
        Places.new(None, torch.zeros(2, 1)).after(terms, most=2)


def test_what_a_checkpoint_keeps_comes_back():
    case = build_case(model_name="trm")
    places = Places.new(case.x, case.y).after(terms([False] * 5), most=4)
    again = Places.from_tensors(places.tensors())
    for a, b in zip(vars(places).values(), vars(again).values(), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True)) if isinstance(a, tuple) else torch.equal(a, b)
    assert Places.from_tensors({}) is None
    with pytest.raises(KeyError, match="steps"):
        Places.from_tensors({k: v for k, v in places.tensors().items() if k != "steps"})


def test_an_explorer_makes_a_number_of_steps_between_two_and_the_most(monkeypatch):
    """With everybody exploring, the share that halts after n steps follows the uniform number that was drawn."""
    monkeypatch.setattr(act, "EXPLORING", 1.0)
    torch.manual_seed(0)
    n, most = 4000, 5
    places = Places.new(None, torch.zeros(n, 1, dtype=torch.long))
    shares = []
    for step in range(1, most + 1):
        places = Places(None, places.y, torch.full((n,), step - 1), places.over).after(terms([True] * n), most=most)
        assert (places.steps == step).all()
        shares.append(places.over.float().mean().item())
    assert shares == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4, 1], abs=0.04)  # drawn from 2, 3, 4, 5
    few = Places.new(None, torch.zeros(n, 1, dtype=torch.long)).after(terms([True] * n), most=1)
    assert few.over.all()


def test_a_trajectory_that_would_not_halt_goes_on():
    places = Places.new(None, torch.zeros(2000, 1, dtype=torch.long)).after(terms([False] * 2000), most=8)
    assert not places.over.any()
    state = places.state
    assert (state.h == 7).all()
    filled = places.refilled(Start(), None, torch.ones(2000, 1, dtype=torch.long))
    assert (filled.y == 0).all()
    assert filled.x is None
