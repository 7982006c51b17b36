import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_gram.models.priors.gaussian import GaussianPrior

from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.sites import guidance_site
from pyro_gram.sampling.draws import CoupledDraws, DrawScheme, antithetic_noise, count_repeats, sobol_noise
from pyro_gram.sampling.rollout import rollout
from tests.conftest import build_case


class RecordFirstNoise(pyro.poutine.messenger.Messenger):
    """Record the first guidance of a rollout, standardised."""

    def __init__(self):
        super().__init__()
        self.noise = []

    def _pyro_post_sample(self, msg):
        if msg["name"] == guidance_site(0) and not self.noise:
            base = msg["fn"].base_dist
            self.noise.append((msg["value"] - base.loc) / base.scale)


def first_noise(kind, n=8):
    case = build_case()
    with RecordFirstNoise() as recorder:
        rollout(case.solver.model, case.x, num_samples=n, depth=2, draws=DrawScheme(kind))
    return recorder.noise[0]


@pytest.mark.parametrize("n", [8, 7])
def test_antithetic_halves_mirror_each_other(n):
    noise = first_noise("antithetic", n)
    half = (n + 1) // 2
    torch.testing.assert_close(noise[half:], -noise[: n - half])
    assert not torch.allclose(noise[0], noise[1])


def test_sobol_noise_is_more_even_than_chance():
    like = torch.zeros(64, 5, 4, 8)
    torch.manual_seed(0)
    noise = sobol_noise(like)
    assert noise.shape == like.shape
    assert torch.isfinite(noise).all()
    chance_square = torch.randn_like(like).mean(0).square().mean()
    assert noise.mean(0).square().mean() < chance_square / 5
    torch.testing.assert_close(noise.var(), torch.tensor(1.0), atol=0.03, rtol=0)


@pytest.mark.parametrize("make", [antithetic_noise, sobol_noise])
def test_each_trajectory_by_itself_is_standard_normal(make):
    torch.manual_seed(0)
    noise = torch.cat([make(torch.zeros(4, 50, 2, 5))[1].flatten() for _ in range(20)])
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert (noise.abs() < 1).double().mean().item() == pytest.approx(0.683, abs=0.02)


def test_draw_schemes_are_repeatable_under_a_seed():
    case = build_case()
    model = case.solver.model
    for kind in ("antithetic", "sobol", "distinct"):
        a, b = (rollout(model, case.x, num_samples=4, depth=2, seed=3, draws=DrawScheme(kind)) for _ in range(2))
        assert torch.equal(a.score, b.score)
    assert DrawScheme().kind == "independent"


def test_repeats_are_counted_among_earlier_answers():
    tokens = torch.tensor([[0, 1], [1, 1], [0, 1], [0, 2], [1, 1]])[..., None]  # [M, B, 1]
    assert count_repeats(tokens).tolist() == [[0, 0], [0, 1], [1, 2], [2, 0], [1, 3]]


def test_the_first_of_each_answer_is_selected_before_a_second_one():
    tokens = torch.tensor([5, 5, 5, 6, 5, 7])[:, None, None]
    indices = DrawScheme("distinct").select(tokens, 3)
    assert indices[:, 0].tolist() == [0, 3, 5]
    assert DrawScheme("distinct").select(tokens, 5)[:, 0].tolist() == [0, 3, 5, 1, 2]


def test_distinct_trajectories_differ_at_least_as_much_and_their_work_is_counted():
    case = build_case()
    model, depth = case.solver.model, 3
    scheme = DrawScheme("distinct", oversample=4, steps=1)
    distinct_samples = rollout(model, case.x, num_samples=6, depth=depth, draws=scheme)
    assert distinct_samples.tokens.shape == (6, 5, 4)
    assert (distinct_samples.steps == depth).all()
    assert (distinct_samples.work == 6 * depth + 18 * 1).all()

    # If trajectories are selected at the end, their answers are as distinct as possible.
    late_scheme = DrawScheme("distinct", oversample=4, steps=depth)
    late_samples = rollout(model, case.x, num_samples=6, depth=depth, draws=late_scheme, seed=1)
    samples = rollout(model, case.x, num_samples=24, depth=depth, seed=1)
    for i in range(5):
        num_answers = len(samples.tokens[:, i].unique(dim=0))
        assert len(late_samples.tokens[:, i].unique(dim=0)) == min(6, num_answers)


def test_oversampled_trajectories_stay_within_the_limit():
    case = build_case()
    batch_sizes = []

    class Watch(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"].startswith("eps"):
                batch_sizes.append(msg["value"][..., 0, 0].numel())

    with Watch():
        rollout(case.solver.model, case.x, num_samples=7, depth=3, draws=DrawScheme("distinct"), max_trajectories=12)
    assert max(batch_sizes) <= 12


def test_conditioned_guidance_is_left_alone():
    case = build_case()
    fixed_eps = torch.full((5, 4, 16), 0.25)
    values = []

    class Watch(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"] == guidance_site(0):
                values.append(msg["value"])

    with Watch():
        conditioned_model = pyro.condition(case.solver.model, {guidance_site(0): fixed_eps})
        rollout(conditioned_model, case.x, num_samples=2, depth=1, draws=DrawScheme("antithetic"))
    assert (values[0] == 0.25).all()


def test_a_prior_that_is_not_gaussian_is_refused(monkeypatch):
    monkeypatch.setattr(GaussianPrior, "forward", lambda self, u: dist.Laplace(u, 1.0).to_event(2))
    case = build_case()
    with pytest.raises(ConfigError, match="need a Gaussian prior"):
        rollout(case.solver.model, case.x, num_samples=2, depth=1, draws=DrawScheme("sobol"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"kind": "wide"}, "unknown draw scheme 'wide'"), ({"oversample": 0}, "oversample"), ({"steps": 0}, "steps")],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DrawScheme(**settings)


def test_a_state_too_large_for_sobol_is_refused():
    with pytest.raises(ConfigError, match="too large for Sobol"):
        sobol_noise(torch.zeros(2, 1, 200, 200))


def test_distinct_is_for_answers_to_an_input_and_keeps_no_history():
    case = build_case()
    with pytest.raises(UserError, match="not for p\\(x\\)"):
        rollout(case.solver.model, None, num_samples=2, depth=1, draws=DrawScheme("distinct"))
    with pytest.raises(UserError, match="leave out halt, draws"):
        rollout(case.solver.model, case.x, num_samples=2, depth=1, draws=DrawScheme("distinct"), history=True)


def test_only_distinct_schemes_oversample():
    for kind in ("independent", "antithetic", "sobol"):
        scheme = DrawScheme(kind, oversample=4, steps=3)
        assert (scheme.is_selective, scheme.shared_steps, scheme.num_proposals(5)) == (False, 1, 5)
        tokens = torch.arange(5)[:, None, None].expand(5, 2, 1)
        assert scheme.select(tokens, 3).tolist() == [[0, 0], [1, 1], [2, 2]]
    scheme = DrawScheme("distinct", oversample=4, steps=3)
    assert (scheme.is_selective, scheme.shared_steps, scheme.num_proposals(5)) == (True, 3, 20)


def test_only_antithetic_and_sobol_schemes_have_a_handler():
    has_handler = {kind: isinstance(DrawScheme(kind).handler(), CoupledDraws) for kind in ("independent", "distinct")}
    assert has_handler == {"independent": False, "distinct": False}
    assert [DrawScheme(kind).handler().kind for kind in ("antithetic", "sobol")] == ["antithetic", "sobol"]


def draw_guidance(prior, kind, steps=2):
    """Sample the guidance of the first transitions under the handler CoupledDraws."""
    with CoupledDraws(kind):
        return [pyro.sample(guidance_site(t), prior) for t in range(steps)]


def test_the_first_draws_have_the_priors_mean_and_scale_and_later_guidance_is_left_alone():
    loc, scale = 5 + torch.randn(3, 4, 2), torch.rand(3, 4, 2) + 0.5
    prior = dist.Normal(loc, scale).expand([6, 3, 4, 2]).to_event(2)
    first, second = draw_guidance(prior, "antithetic")
    assert first.shape == (6, 3, 4, 2)
    torch.testing.assert_close(first[:3] - loc, loc - first[3:])
    assert not torch.allclose(second[:3] - loc, loc - second[3:])
    many_draws, _ = draw_guidance(dist.Normal(loc, scale).expand([4000, 3, 4, 2]).to_event(2), "antithetic")
    torch.testing.assert_close(many_draws.std(0), scale, atol=0.06, rtol=0)
    sobol_draws, _ = draw_guidance(prior, "sobol")
    assert sobol_draws.shape == (6, 3, 4, 2)


def test_other_sites_are_left_alone():
    with CoupledDraws("antithetic") as handler:
        z = pyro.sample("z", dist.Normal(torch.zeros(4, 3), 1.0).to_event(1))
        assert not handler.is_done
    assert not torch.allclose(z[:2], -z[2:])


def test_a_prior_without_noise_is_refused():
    from pyro_gram.inference.families import MeanFamily

    with pytest.raises(ConfigError, match="sobol trajectories need a Gaussian prior"):
        draw_guidance(MeanFamily().distribution(torch.zeros(2, 3, 4)), "sobol")


def test_each_input_has_a_sobol_sequence_of_its_own_that_is_even_in_every_channel():
    torch.manual_seed(1)
    noise = sobol_noise(torch.zeros(8, 3, 2, 4))
    uniform = torch.distributions.Normal(0.0, 1.0).cdf(noise)
    # Before the shift, each channel has one point in each eighth of [0, 1]. The shift moves all points equally far.
    gaps = uniform.sort(0).values.diff(dim=0)
    assert (gaps > 1e-4).all()
    assert (gaps < 0.25).all()
    assert not torch.allclose(noise[:, 0], noise[:, 1])
    other_noise = sobol_noise(torch.zeros(8, 3, 2, 4))
    assert not torch.allclose(noise, other_noise)
    assert sobol_noise(torch.zeros(1, 1, 1, 1)).shape == (1, 1, 1, 1)
