"""Exact values, signs and shapes that larger tests do not check."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro_gram.guides.amortized import align_answer
from pyro_gram.guides.mean_field import MeanFieldGuide
from pyro_gram.models.direct import OneStepModel
from pyro_gram.models.flat import Looped
from pyro_gram.models.mdlm import Diffusion
from pyro_gram.models.priors.flow import FlowPrior
from torch import nn

from pyro_gram.diagnostics import calibration
from pyro_gram.diagnostics.bounds import _RecordMode, bounds, terms
from pyro_gram.diagnostics.evidence import MIN_ESS, Estimate, Evidence, evidence
from pyro_gram.diagnostics.likelihood import rollout_log_prob
from pyro_gram.diagnostics.metrics import solution_ids
from pyro_gram.errors import UserError
from pyro_gram.inference.elbo import balanced_log_densities, make_elbo
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.inference.importance import guide_draws
from pyro_gram.inference.sites import DRAW_ANSWER, VALUE_SCALE, add_training_loss
from pyro_gram.sampling.draws import sobol_noise
from pyro_gram.sampling.selection import select_by_value
from pyro_gram.sampling.smc import smc
from pyro_gram.tasks.batches import derive_seed
from pyro_gram.tasks.uniform import expected_total_variation, total_variation
from tests.conftest import build_case, build_case_with_heads, build_small
from tests.inference.test_own_latents import Shared, SharedGuide, pair

# ---- programs --------------------------------------------------------------------------------------------------------


def test_programs_and_guides_have_their_traits():
    assert OneStepModel.traits.is_one_step
    assert Looped.traits.is_one_step
    assert not Diffusion.traits.has_exact_likelihood
    assert not MeanFieldGuide.traits.is_amortized
    assert EffectGuide.guided_transitions == 0


def test_the_start_of_a_program_without_input_is_learned_and_its_zeros_are_no_state():
    model = build_small(model_name="direct", task_name="sudoku_uncond").model
    assert isinstance(model.start, nn.Parameter)
    assert model.start.std() > 0.5
    assert "zeros" not in model.state_dict()


def test_the_flow_starts_as_the_gaussian_that_it_transforms():
    case = build_case(prior_name="flow")
    prior = FlowPrior(case.solver.config.prior, 16)  # a new prior, whose parameters are not perturbed
    u = torch.randn(2, 4, 16)
    draws = prior(u).sample((4000,))
    gaussian = dist.Normal(*prior.head(u))
    torch.testing.assert_close(draws.std(0), gaussian.scale.expand(2, 4, 16), rtol=0.1, atol=0.01)
    for coupling in prior.couplings:
        assert (coupling.nn.layers[-1].weight == 0).all()
        assert (coupling.nn.layers[-1].bias == 0).all()


def test_pairs_without_input_may_have_several_batch_dimensions():
    case = build_case(task_name="sudoku_uncond")
    y = case.y[None].expand(3, *case.y.shape)
    trace = poutine.trace(case.solver.model).get_trace(None, y)
    assert trace.nodes["h"]["value"].shape[:2] == (3, 5)


def test_an_additive_guide_adds_its_code_of_y():
    case = build_case(guide_name="additive")
    guide, u = case.solver.guide, torch.randn(5, 4, 16)
    code = guide.encode(case.x, case.y)
    torch.testing.assert_close(guide.features(u, code) - u, align_answer(code, u))


def test_a_mean_field_guide_has_a_row_and_parameters_for_each_pair():
    case = build_case(guide_name="mean_field", guide={"num_pairs": 9})
    guide = case.solver.guide
    assert {"loc", "log_scale"} <= dict(guide.named_parameters()).keys()
    guide.train()
    doubled_pairs = [torch.cat([part, part]) for part in (case.x, case.y)]
    num_distinct = len({tuple(x.flatten().tolist() + y.tolist()) for x, y in zip(case.x, case.y, strict=True)})
    guide.encode(*doubled_pairs)
    assert int(guide.used) == num_distinct


def test_a_guide_keeps_no_code_of_y():
    case = build_case()
    case.solver.guide(case.x, case.y)
    assert case.solver.guide._code is None


def test_a_masked_observation_in_a_users_program_does_not_count_in_rollouts():
    case = build_case()

    def program(x, y=None, state=None, *, steps=1):
        with pyro.plate("inputs", len(x), dim=-1), poutine.mask(mask=False):
            pyro.sample("seen", dist.Normal(0.0, 1.0), obs=torch.ones(len(x)))
        return case.solver.model(x, y, state, steps=steps)

    masked_result, plain_result = (
        rollout_log_prob(m, case.x, case.y, num_samples=2, depth=1) for m in (program, case.solver.model)
    )
    assert torch.equal(masked_result, plain_result)


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_a_surrogate_computed_in_chunks_counts_the_shared_term_once():
    model, guide, x, y = pair(Shared, SharedGuide)
    result = bounds(model, guide, x, y, steps=1, seed=3, max_traced=2).surrogate
    shared_term = (0.2**2 + 0.5**2 - 1) / 2 - torch.tensor(0.2).log().item()
    own_terms = torch.zeros(())
    for chunk, part in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        torch.manual_seed(3 + chunk)
        terms(model, guide, x[part], y[part], truncated=False)  # bounds() makes these draws first
        chunk_terms = terms(model, guide, x[part], y[part])
        own_terms = own_terms - (chunk_terms.reconstruction + chunk_terms.kl.sum(0)).sum()
    assert (result.sum() - own_terms).item() == pytest.approx(-shared_term, abs=1e-2)


def test_an_answer_that_is_a_draw_is_not_recorded_as_a_mode():
    for infer, has_mode in (({DRAW_ANSWER: True}, False), ({DRAW_ANSWER: False}, True), ({"note": 1}, True)):
        with _RecordMode() as answer:
            pyro.sample("y", dist.Categorical(logits=torch.randn(3, 4)).to_event(1), infer=infer)
        assert (answer.mode is not None) is has_mode


def test_the_gradient_of_the_posteriors_density_is_scaled_by_its_share():
    loc = torch.tensor(0.3, requires_grad=True)
    value = torch.tensor(1.0)
    log_q, _ = balanced_log_densities(dist.Normal(loc, 1.0), dist.Normal(0.0, 1.0), value, 0.8)
    log_q.backward()
    assert loc.grad.item() == pytest.approx(0.2 * 0.7, rel=1e-5)


@pytest.mark.parametrize("name", ["balanced", "mean_field", "trace"])
def test_an_elbo_has_the_given_number_of_particles(name):
    assert make_elbo(name, num_particles=3).num_particles == 3


@pytest.mark.parametrize("name", ["num_samples", "depth", "max_trajectories"])
def test_log_p_by_the_prior_refuses_counts_of_zero(name):
    case, settings = build_case(), {"num_samples": 1, "depth": 1, "max_trajectories": 4}
    with pytest.raises(UserError, match=f"{name} must be at least 1, not 0"):
        rollout_log_prob(case.solver.model, case.x, case.y, **{**settings, name: 0})


def test_smc_refuses_a_limit_of_zero_trajectories():
    case = build_case_with_heads(1.0)
    with pytest.raises(UserError, match="max_trajectories must be at least 1"):
        smc(case.solver.model, case.x, num_samples=2, depth=2, max_trajectories=0)


def test_the_value_heads_loss_is_the_squared_error():
    error = torch.tensor([0.0, 0.5, -2.0])
    log_p = dist.Normal(0.0, VALUE_SCALE).log_prob(error)
    torch.testing.assert_close(log_p[0] - log_p, error.square())


def test_losses_of_heads_are_auxiliary():
    """Without ``is_auxiliary``, Pyro would warn of a site that the guide does not have."""
    with poutine.trace() as trace:
        add_training_loss("loss", torch.ones(3))
    assert trace.trace.nodes["loss"]["infer"]["is_auxiliary"]


# ---- selection and draws ---------------------------------------------------------------------------------------------


def test_selection_refuses_answers_without_a_value():
    with pytest.raises(ValueError, match="zip"):
        select_by_value(["a", "b"], [0.5], [0.0, 0.0])


def test_sobol_sequences_of_many_seeds_differ():
    differences = set()
    for seed in range(150):
        torch.manual_seed(seed)
        int(torch.randint(2**31, ()))
        torch.manual_seed(seed)
        points = sobol_noise(torch.empty(2, 1, 1, 2))
        differences.add(round((points[0] - points[1]).sum().item(), 4))
    assert len(differences) > 100


# ---- diagnostics -----------------------------------------------------------------------------------------------------


def test_two_right_samples_are_enough_for_a_test():
    ids = torch.zeros(2, 1, dtype=torch.long)
    result = calibration.uniformity(ids, torch.tensor([100]), false_discovery_rate=0.0001)
    assert result.p_value[0].item() * 10_001 == pytest.approx(round(result.p_value[0].item() * 10_001), abs=1e-6)
    assert (result.p_value[0].item() * 1000) % 1 > 1e-6  # there were 10,000 simulations, and not 999


def test_solutions_of_more_than_a_thousand_samples_are_identified():
    case = build_case()
    train = case.solver.task.split("train")
    puzzles = train.select(train.num_solutions.argmin()[None])  # a graph with edges, so one colour is not enough
    tokens = puzzles.solutions_of(0)[:1].expand(2500, 1, -1).clone()
    tokens[1700] = (tokens[1700] + 1) * 0
    ids = solution_ids(case.solver.task, puzzles, tokens)
    assert (ids[:1700] == ids[0]).all()
    assert ids[0, 0] >= 0
    assert ids[1700, 0] == -1


def test_the_summary_of_evidence_agrees_with_values_computed_by_hand():
    log_weight = torch.tensor([[0.0], [1.0], [2.0], [0.5]], dtype=torch.double)
    plain_estimate = Estimate.from_log_weights(log_weight, smooth=False)
    weights = log_weight[:, 0].exp()
    relative_error = weights.std() / weights.mean() / 2  # the relative error of the mean of four weights
    assert plain_estimate.se[0].item() == pytest.approx(relative_error.item(), rel=1e-6)
    case = build_case()
    result = evidence(case.solver.model, case.solver.guide, case.x, case.y, depth=1, guide_samples=8, prior_samples=8)
    summary = result.summary()
    assert type(summary["log_p_guide"]) is type(summary["log_p_se"]) is float
    spread = result.log_p.double().numpy().std() / 5**0.5
    assert summary["log_p_se"] == pytest.approx(spread, rel=1e-5)


def test_the_total_variation_of_a_perfect_sampler_is_computed_in_double():
    assert expected_total_variation(torch.tensor([3, 7]), 20).dtype == torch.double
    result = expected_total_variation(torch.tensor([3_000_000]), 1_000_003).item()
    p, n = 1 / 3_000_000, 1_000_003
    assert result == pytest.approx((1 - p) ** n, rel=1e-6)  # n < m: the expected share of solutions that are not drawn


def test_an_input_with_one_right_sample_is_not_tested():
    """The p-value shows how many simulations were made, and their number depends on the number of tests."""
    ids = torch.zeros(30, 2, dtype=torch.long)
    ids[1:, 1] = -1
    result = calibration.uniformity(ids, torch.tensor([8, 8]), false_discovery_rate=0.0005)
    assert result.p_value[0].item() == pytest.approx(1 / 2001)
    assert result.p_value[1].isnan()


def test_the_priors_estimate_is_the_plain_mean():
    case = build_case()
    result = evidence(case.solver.model, case.solver.guide, case.x, case.y, depth=1, guide_samples=40,
                     prior_samples=60)  # fmt: skip
    log_p = rollout_log_prob(case.solver.model, case.x, case.y, num_samples=60, depth=1, seed=derive_seed(0, 0))
    expected = log_p.double().logsumexp(0) - torch.tensor(60.0).double().log()
    torch.testing.assert_close(result.prior.log_p, expected)


def test_pairs_with_enough_hits_are_trusted():
    case = build_case()
    plain_estimate = evidence(case.solver.model, None, case.x, case.y, depth=1, guide_samples=1, prior_samples=8).prior
    ess = torch.tensor([MIN_ESS, MIN_ESS + 1.0, MIN_ESS - 1.0, MIN_ESS + 2.0, MIN_ESS + 3.0])
    assert Evidence((), None, None, replace(plain_estimate, ess=ess)).summary()["prior_trusted"] == pytest.approx(0.8)


# ---- inference -------------------------------------------------------------------------------------------------------


def test_guidance_is_measured_for_each_transition_sample_and_input():
    case = build_case()
    result = guide_draws(case.solver.model, case.solver.guide, case.x, case.y, steps=1, num_samples=2)
    assert result.guidance.shape == (2, 2, 5)


def test_log_p_of_many_data_without_input_follows_their_order():
    case = build_case(task_name="sudoku_uncond")
    y = torch.cat([case.y.roll(i, 0) for i in range(20)])  # more data than are scored at once
    result = rollout_log_prob(case.solver.model, None, y, num_samples=2, depth=1)
    assert result.shape == (2, 100)
    part = rollout_log_prob(case.solver.model, None, y[90:], num_samples=2, depth=1)
    torch.testing.assert_close(result[:, 90:], part)


def test_a_state_as_large_as_sobol_allows_gets_noise():
    limit = torch.quasirandom.SobolEngine.MAXDIM
    assert sobol_noise(torch.empty(1, 1, 1, limit)).shape == (1, 1, 1, limit)


def test_equal_inputs_have_equal_tests_and_missing_numbers_of_solutions_are_refused():
    ids = torch.randint(0, 3, (30, 1)).expand(30, 2)
    result = calibration.uniformity(ids, torch.tensor([3, 3]))
    assert result.p_value[0] == result.p_value[1]
    with pytest.raises(ValueError, match="zip|broadcast"):
        total_variation(ids[:, :1].expand(30, 1), torch.tensor([3, 3]))


def test_counts_of_pairs_are_whole_numbers():
    case = build_case()
    parts = case.solver.model, case.solver.guide, case.x, case.y
    summary = evidence(*parts, depth=1, guide_samples=8, prior_samples=8).summary()
    assert type(summary["agree"]) is type(summary["both_trusted"]) is int
