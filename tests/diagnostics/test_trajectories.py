import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_gram.diagnostics.trajectories import (
    Trajectories,
    attractors,
    early_counts,
    evenly_spaced,
    guidance_influence,
    number_answers,
    separation,
    trace_trajectories,
)
from pyro_gram.errors import UserError
from pyro_gram.inference.contract import model_traits
from pyro_gram.inference.sites import data_plates
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.tasks.coloring import Coloring
from pyro_gram.tasks.coloring.config import ColoringConfig
from tests.conftest import build_case, build_small

PLAIN = SimpleNamespace(canonical_form=lambda x, y: y)  # a task without symmetries


class Coins(nn.Module):
    """A program with guidance eps_t ~ N(0, 1) at ``L`` positions. h is the sum of ``mix[t] @ eps_t``; y is h > 0.

    Args:
        mix: ``[steps, L, L]``.
    """

    def __init__(self, mix):
        super().__init__()
        self.mix = mix

    def forward(self, x, y=None, state=None, *, steps=1, truncated=None, beta=1.0):
        with data_plates(x.shape[:-1]):
            h = torch.zeros(*x.shape, 1) if state is None else state.h
            for t in range(steps):
                u = pyro.deterministic(f"u_{t}", h, event_dim=2)
                h = u + self.mix[t] @ pyro.sample(f"eps_{t}", dist.Normal(torch.zeros_like(u), 1.0).to_event(2))
            for site in LatentState._fields:
                pyro.deterministic(site, h, event_dim=2)
            logits = torch.cat((-h, h), -1)
            return pyro.sample("y", dist.Categorical(logits=logits).to_event(1), obs=y)


def influence_of(mix, **settings):
    x = torch.zeros(2, mix.shape[-1], dtype=torch.long)
    return guidance_influence(Coins(mix), PLAIN, x, depth=len(mix), **{"num_samples": 200, **settings})


# ---- recording ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "temper"),
    [
        ({}, TemperConfig()),
        ({}, TemperConfig(scale=20.0, transitions=3)),
        ({"task_name": "sudoku_uncond"}, TemperConfig()),
        ({"model_name": "trm", "model": {"initial_state": "random"}}, TemperConfig()),
        ({"model_name": "autoregressive"}, TemperConfig()),
    ],
)
def test_trajectories_are_those_of_a_rollout_under_the_same_seed(changes, temper):
    case = build_case(**changes)
    model = case.solver.model
    before = torch.get_rng_state()
    trajectories = trace_trajectories(model, case.x, depth=3, num_samples=4, seed=7, temper=temper)
    assert torch.equal(torch.get_rng_state(), before)
    samples = rollout(model, case.x, depth=3, num_samples=4, seed=7, temper=temper, history=True)
    assert torch.equal(trajectories.tokens, samples.history)
    assert trajectories.h.shape[:3] == (4, *trajectories.tokens.shape[1:3])


def test_trajectories_start_at_z_0_and_their_states_decode_to_their_answers(case):
    model = case.solver.model
    trajectories = trace_trajectories(model, case.x, depth=3, num_samples=4)
    assert trajectories.h.shape == (4, 4, 5, *model.h0.shape)
    assert torch.equal(trajectories.h[0], model.h0.expand(4, 5, -1, -1))
    assert torch.equal(model.decoder(trajectories.h[1:]).argmax(-1), trajectories.tokens)
    assert not torch.equal(trajectories.h[1, 0], trajectories.h[1, 1])


def test_trajectories_start_differently_if_z_0_is_drawn():
    case = build_case(model_name="trm", model={"initial_state": "random"})
    h = trace_trajectories(case.solver.model, case.x, depth=1, num_samples=3).h
    assert not torch.equal(h[0, 0], h[0, 1])


def test_the_deterministic_trajectory_does_not_depend_on_the_seed(case):
    first, second = (
        trace_trajectories(case.solver.model, case.x, depth=3, num_samples=9, seed=seed, at_mean=True)
        for seed in (1, 2)
    )
    assert first.tokens.shape == (3, 1, 5, 4)
    assert torch.equal(first.h, second.h)


def test_a_prior_without_a_mean_has_no_deterministic_trajectory():
    case = build_case(prior_name="flow")
    with pytest.raises(NotImplementedError):
        trace_trajectories(case.solver.model, case.x, depth=1, at_mean=True)


def test_a_depth_of_0_is_refused(case):
    with pytest.raises(UserError, match="depth must be at least 1"):
        trace_trajectories(case.solver.model, case.x, depth=0)


@pytest.mark.parametrize("name", ["gram", "trm", "direct", "mdlm", "vae"])
def test_trajectories_of_every_kind_of_model_are_analysed(name):
    case = build_case(model_name=name)
    depth = 1 if model_traits(case.solver.model).is_one_step else 3
    trajectories = trace_trajectories(case.solver.model, case.x, depth=depth, num_samples=4)
    result = attractors(case.solver.task, case.x, trajectories.tokens)
    assert trajectories.h.shape[:3] == (depth + 1, 4, 5)
    assert 1 <= int(result.num_distinct.min()) <= int(result.num_distinct.max()) <= 4
    deterministic = name in ("direct", "hrm", "trm", "looped")
    assert (result.effective_number.max() < 1.01) or not deterministic


# ---- where trajectories end --------------------------------------------------------------------------------------

A, SAME_AS_A, WRONG, OTHER = [0, 1, 0, 1], [2, 0, 2, 0], [0, 0, 1, 2], [0, 1, 2, 1]


@pytest.fixture(scope="module")
def path_graph():
    task = build_small(task={"train": 8, "validation": 2, "test": 2}).task
    edges = torch.zeros(1, 4, 4, dtype=torch.bool)
    edges[0, [0, 1, 2], [1, 2, 3]] = True
    return task, task.encode(edges | edges.mT)


@pytest.fixture
def tokens():
    """Return answers ``[4 steps, 3 trajectories, 1 input, 4 vertices]``. They settle at steps 1, 2 and 4."""
    ways = [[A, SAME_AS_A, A, A], [OTHER, WRONG, WRONG, WRONG], [SAME_AS_A, SAME_AS_A, OTHER, SAME_AS_A]]
    return torch.tensor(ways).transpose(0, 1)[:, :, None]


def test_answers_are_counted_up_to_symmetry(path_graph, tokens):
    result = attractors(*path_graph, tokens)
    assert result.num_distinct.tolist() == [2]
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert result.effective_number.item() == pytest.approx(math.exp(entropy))
    assert result.settling_step.T.tolist() == [[1, 2, 4]]
    assert result.settled_by_step[:, 0].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])
    assert result.unsettled_by_input.tolist() == pytest.approx([1 / 3])
    assert result.right_by_step[:, 0].tolist() == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3])
    assert result.right_by_input.tolist() == pytest.approx([2 / 3])


def test_a_single_step_is_settled(path_graph, tokens):
    result = attractors(*path_graph, tokens[:1])
    assert result.settling_step.tolist() == [[1], [1], [1]]
    assert result.unsettled_by_input.tolist() == [0]


def test_right_answers_may_be_unknown():
    task = SimpleNamespace(
        canonical_form=lambda x, y: y,
        is_checkable=True,
        is_valid=lambda x, y: torch.ones_like(y[..., 0], dtype=torch.bool),
        has_known_answer=lambda x, y: torch.tensor([True, False]),
    )
    right_share = attractors(task, None, torch.zeros(2, 3, 2, 1, dtype=torch.long)).right_by_input
    assert right_share[0] == 1
    assert right_share[1].isnan()
    task.is_checkable = False
    assert attractors(task, None, torch.zeros(2, 3, 2, 1, dtype=torch.long)).right_by_input is None


def test_answers_are_numbered_by_frequency_in_each_input():
    answers = torch.tensor([[5, 1], [2, 1], [5, 4], [5, 4], [3, 4]])[..., None]
    numbers = number_answers(answers)
    assert numbers[:, 0].tolist() in ([0, 1, 0, 0, 2], [0, 2, 0, 0, 1])
    assert numbers[:, 1].tolist() == [1, 1, 0, 0, 0]


def test_pairs_separate_in_answers_and_in_states(path_graph, tokens):
    h = torch.zeros(5, 3, 1, 1, 2)  # at z_0 all states are equal; later the three trajectories are at 0, 1 and 3
    h[1:] = torch.tensor([0.0, 1.0, 3.0])[:, None, None, None]
    result = separation(*path_graph, Trajectories(tokens, h))
    # Pairs (0, 1) and (1, 2) end in different answers, and differ at every step.
    assert (result.num_different, result.num_same) == (2, 1)
    assert result.differ_by_step.tolist() == [1, 1, 1, 1]
    assert result.distance_different.tolist() == pytest.approx([0, 1.5, 1.5, 1.5, 1.5])
    assert result.distance_same.tolist() == pytest.approx([0, 3, 3, 3, 3])


def test_padding_does_not_bring_states_together():
    task = Coloring(ColoringConfig(layout="graph", min_vertices=3, vertices=6))
    x = task.parse("Bw")[None]  # three of six positions are padding
    h = torch.zeros(2, 2, 1, 6, 2)
    h[:, 1, :, :3] = 1.0
    result = separation(task, x, Trajectories(torch.zeros(1, 2, 1, 6).long(), h))
    assert result.distance_same.tolist() == pytest.approx([1, 1])


def test_pairs_of_all_inputs_count_equally():
    late_answers = torch.tensor(
        [[0, 0, 0], [0, 1, 2]]
    )  # [2 steps, 3 trajectories]: three pairs separate at the last step
    early_answers = torch.tensor([[0, 1, 1], [0, 1, 1]])  # two pairs differ from the first step on
    tokens = torch.stack((late_answers, early_answers), 2)[..., None]
    result = separation(PLAIN, None, Trajectories(tokens, torch.zeros(3, 3, 2, 1, 1)))
    assert (result.num_different, result.num_same) == (5, 1)
    assert result.differ_by_step.tolist() == pytest.approx([2 / 5, 1])


def test_trajectories_with_the_same_end_have_no_pair_that_separates(path_graph, tokens):
    result = separation(*path_graph, Trajectories(tokens[:, :1].expand(-1, 3, -1, -1), torch.zeros(5, 3, 1, 1, 2)))
    assert result.num_different == 0
    assert result.differ_by_step.isnan().all()
    assert result.distance_same.tolist() == [0] * 5


# ---- which draws decide ------------------------------------------------------------------------------------------


def test_a_deciding_transition_is_identified():
    mix = torch.zeros(5, 1, 1)
    mix[2] = 1
    result = influence_of(mix)
    assert result.num_kept.tolist() == [0, 1, 2, 3, 4, 5]
    assert (result.by_transition[3:] == 1).all()
    assert ((result.by_transition[:3] - 0.5).abs() < 0.15).all()  # each trajectory and each rerun has its own draws
    assert ((result.by_position - 0.5).abs() < 0.15).all()


def test_a_deciding_position_is_identified():
    mix = torch.zeros(4, 3, 3)
    mix[:, :, 1] = 1  # every token is the sign of the draw at position 1
    result = influence_of(mix)
    assert result.positions.tolist() == [0, 1, 2]
    assert (result.by_position[[0, 2]] == 1).all()
    assert ((result.by_position[1] - 0.5).abs() < 0.15).all()
    shares = result.by_transition.mean(1)
    assert (shares.diff() > 0).all()
    assert shares[-1] == 1


def test_tempered_draws_have_more_influence():
    mix = torch.eye(1).expand(2, 1, 1)
    plain_share = influence_of(mix).by_transition[1].mean()
    wide_share = influence_of(mix, temper=TemperConfig(scale=30.0, transitions=1)).by_transition[1].mean()
    assert plain_share < 0.9 < wide_share


def test_the_seed_fixes_the_influence():
    mix = torch.eye(2).expand(3, 2, 2)
    first, second, other = (influence_of(mix, num_samples=30, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.by_transition, second.by_transition)
    assert torch.equal(first.by_position, second.by_position)
    assert not torch.equal(first.by_position, other.by_position)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prior_name": "discrete"},
        {"task_name": "sudoku_uncond"},
        {"model_name": "vae"},
        {"model": {"prefix": 2}},
        {"model_name": "trm", "prior_name": "gaussian", "model": {"initial_state": "random"}},
    ],
)
def test_keeping_all_guidance_keeps_the_answer(changes):
    case = build_case(**changes)
    depth = 1 if model_traits(case.solver.model).is_one_step else 2
    result = guidance_influence(case.solver.model, case.solver.task, case.x, depth=depth, num_samples=6)
    inputs = 1 if case.x is None else len(case.x)
    length = case.solver.task.spec.input_length + changes.get("model", {}).get("prefix", 0)
    assert result.num_kept[0] == 0
    assert (result.by_transition[-1] == 1).all()
    assert result.by_transition.shape == (len(result.num_kept), inputs)
    assert result.by_position.shape == (length, inputs)


@pytest.mark.parametrize("changes", [{"model_name": "direct"}, {"prior_name": "none"}, {"prior_name": "mean_only"}])
def test_a_program_that_draws_no_guidance_has_no_influence(changes):
    case = build_case(**{"guide_name": "prior", **changes})
    assert guidance_influence(case.solver.model, case.solver.task, case.x, depth=1, num_samples=2) is None


def test_small_numbers_of_transitions_are_denser():
    assert early_counts(16, 8) == [0, 1, 2, 3, 4, 6, 10, 16]
    assert early_counts(3, 8) == [0, 1, 2, 3]
    assert early_counts(100, 2) == [0, 100]
    assert len(early_counts(200, 12)) == 12


def test_positions_of_long_sequences_are_evenly_spaced():
    assert evenly_spaced(100) == list(range(100))
    positions = evenly_spaced(900)
    assert (len(set(positions)), positions[0], positions[-1]) == (32, 0, 899)
    assert evenly_spaced(9, 3) == [0, 4, 8]
    assert evenly_spaced(3, 9) == [0, 1, 2]


def test_places_below_1_are_refused():
    with pytest.raises(UserError, match="places must be at least 1"):
        influence_of(torch.ones(1, 2, 2), places=0)
    assert influence_of(torch.ones(1, 5, 5), places=2, num_samples=2).positions.tolist() == [0, 4]
