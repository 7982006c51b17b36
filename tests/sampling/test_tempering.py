import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.messenger import Messenger
from pyro_gram.models.priors.gaussian import GaussianPrior

import pyro_gram
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.sites import transition_index
from pyro_gram.runs.measure import sample_prior
from pyro_gram.runs.run import open_run
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.tempering import AtMean, Temper, TemperConfig, widen
from pyro_gram.solver import Solver
from tests.conftest import build_case, small_config

WIDE = TemperConfig(scale=3.0, transitions=3)


class Scales(Messenger):
    """Record the scale of each transition, divided by the scale of the untempered prior at the same u_t."""

    def __init__(self, prior):
        super().__init__()
        self.prior, self.u, self.factors = prior, None, []

    def _pyro_post_sample(self, msg):
        if msg["name"].startswith("u_"):
            self.u = msg["value"]
        elif transition_index(msg["name"]) is not None:
            p, tempered_p = self.prior(self.u).base_dist, msg["fn"].base_dist
            torch.testing.assert_close(tempered_p.loc, p.loc.expand_as(tempered_p.loc))
            factors = tempered_p.scale / p.scale
            torch.testing.assert_close(factors, factors.mean().expand_as(factors))
            self.factors.append(factors.mean().item())


@pytest.mark.parametrize("history", [False, True])
def test_only_the_first_transitions_of_every_chunk_are_scaled(history):
    case = build_case()  # T = 2: the third transition lies in the second supervision step
    model = case.solver.model
    with Scales(model.prior) as scales:
        rollout(model, case.x, num_samples=4, depth=3, history=history, temper=WIDE, max_trajectories=8)
    assert scales.factors == pytest.approx([3, 3, 3, 1, 1, 1] * 3)


def test_history_changes_no_tempered_draw():
    case = build_case()
    model = case.solver.model
    plain_samples = rollout(model, case.x, num_samples=4, depth=3, seed=2, temper=WIDE)
    history_samples = rollout(model, case.x, num_samples=4, depth=3, seed=2, temper=WIDE, history=True)
    assert torch.equal(plain_samples.score, history_samples.score)


def test_a_narrow_prior_makes_trajectories_meet():
    case = build_case()
    narrow_temper = TemperConfig(scale=0.01, transitions=4)
    plain_spread, narrow_spread = (
        rollout(case.solver.model, case.x, num_samples=16, depth=2, temper=t).score.std(0).mean()
        for t in (TemperConfig(), narrow_temper)
    )
    assert narrow_spread < plain_spread / 20


def test_a_prior_that_cannot_be_scaled_is_named():
    with pytest.raises(ConfigError, match=r"StudentT.*temper.transitions to 0"):
        widen(dist.StudentT(3.0).expand([2]).to_event(1), 2.0)


def test_other_sites_keep_their_scale():
    with Temper(WIDE):
        fn = pyro.poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).get_trace().nodes["z"]["fn"]
    assert fn.scale == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, "scale"),
        ({"transitions": -1}, "transitions"),
        ({"scale": 2.0}, "temper.transitions = 0 changes nothing: give a scale other than 1"),
        ({"transitions": 2}, "changes nothing"),
        ({"scale": "a", "transitions": 2}, r"takes a scale \(a number\), transitions \(a whole number\)"),
        ({"scale": 2.0, "transitions": 1.5}, r"takes a scale \(a number\), transitions \(a whole number\)"),
        ({"floor": None}, r"and a floor \(a number\), not 1.0, 0, None"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TemperConfig(**settings)


def test_a_prior_that_cannot_be_scaled_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(GaussianPrior, "forward", lambda self, u: dist.Laplace(u, 1.0).to_event(2))
    config = small_config(temper={"scale": 2.0, "transitions": 1})
    with pytest.raises(ConfigError, match="Laplace"):
        open_run(config, tmp_path / "run", resume=False, data_dir=None, device=torch.device("cpu"))
    assert not (tmp_path / "run").exists()


def test_evaluation_and_solver_sample_as_the_config_says(tmp_path):
    plain_config, tempered_config = (small_config(temper=t) for t in ({}, {"scale": 3.0, "transitions": 3}))
    runs = [
        open_run(c, tmp_path / str(i), resume=False, data_dir=None, device=torch.device("cpu"))
        for i, c in enumerate((plain_config, tempered_config))
    ]
    x = runs[0].solver.task.split("test").inputs
    a, b = (sample_prior(run.averaged_solver, x).score for run in runs)
    assert not torch.allclose(a, b)
    assert torch.equal(sample_prior(runs[0].averaged_solver, x, temper=tempered_config.temper).score, b)
    solvers = [Solver(run.solver.config, run.solver.task, run.solver.model, run.solver.guide) for run in runs]
    assert torch.equal(solvers[1].sample(x).score, solvers[0].sample(x, temper=tempered_config.temper).score)
    assert torch.equal(solvers[0].sample(x).score, solvers[1].sample(x, temper=TemperConfig()).score)
    assert solvers[0].solve(x) == solvers[1].solve(x, temper=pyro_gram.TemperConfig())
    assert solvers[0].solve(x) != solvers[1].solve(x)
    with pytest.raises(UserError, match=r"temper must be a pyro_gram.TemperConfig, not \(2, 2\)"):
        solvers[0].sample(x, temper=(2, 2))


def test_tempering_adds_no_noise_to_a_prior_without_noise():
    from pyro_gram.inference.families import MeanFamily

    point = MeanFamily(scale=0.1).distribution(torch.randn(3, 4, 8))
    wide_point = widen(point, 3.0)
    torch.testing.assert_close(wide_point.sample(), point.mean)


def test_a_widened_distribution_keeps_its_mean_and_shape():
    p = dist.Normal(torch.randn(5, 4, 8), torch.rand(5, 4, 8) + 0.1).to_event(2)
    wide_normal = widen(p, 3.0)
    torch.testing.assert_close(wide_normal.mean, p.mean)
    torch.testing.assert_close(wide_normal.stddev, 3 * p.stddev)
    assert (wide_normal.batch_shape, wide_normal.event_shape) == (p.batch_shape, p.event_shape)
    point = dist.Delta(torch.zeros(5, 4, 8), event_dim=2)
    assert widen(point, 3.0) is point


def test_at_the_priors_mean_the_trajectory_is_deterministic_and_the_answer_is_drawn():
    case = build_case()
    with AtMean():
        trace = pyro.poutine.trace(case.solver.model).get_trace(case.x, steps=2)
    for t in range(4):
        mean = case.solver.model.prior(trace.nodes[f"u_{t}"]["value"]).mean
        torch.testing.assert_close(trace.nodes[f"eps_{t}"]["value"], mean)
    with AtMean():
        answers = torch.stack([case.solver.model(case.x) for _ in range(20)])
    assert (answers != answers[0]).any()


def test_a_temper_describes_itself():
    assert TemperConfig(1.9, 2).describe() == "sigma x 1.9 in the first 2 transitions"
    assert TemperConfig(1.0, 0).describe() == ""
    assert TemperConfig(floor=0.02).describe() == "no values below p = 0.02"


def test_a_floor_is_for_lattices():
    for model in ("gram", "autoregressive", "mdlm"):
        solver = build_case(model_name=model).solver
        with pytest.raises(ConfigError, match="only a lattice has values that a floor can exclude: set temper.floor"):
            solver.sample("Cr", temper=TemperConfig(floor=0.02))
