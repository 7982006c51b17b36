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


class First(pyro.poutine.messenger.Messenger):
    """The first guidance of a roll-out, standardised."""

    def __init__(self):
        super().__init__()
        self.noise = []

    def _pyro_post_sample(self, msg):
        if msg["name"] == guidance_site(0) and not self.noise:
            base = msg["fn"].base_dist
            self.noise.append((msg["value"] - base.loc) / base.scale)


def noise_of(kind, n=8):
    case = build_case()
    with First() as first:
        rollout(case.solver.model, case.x, num_samples=n, depth=2, draws=DrawScheme(kind))
    return first.noise[0]


@pytest.mark.parametrize("n", [8, 7])
def test_antithetic_halves_mirror_each_other(n):
    noise = noise_of("antithetic", n)
    half = (n + 1) // 2
    torch.testing.assert_close(noise[half:], -noise[: n - half])
    assert not torch.allclose(noise[0], noise[1])


def test_sobol_noise_is_more_even_than_chance():
    like = torch.zeros(64, 5, 4, 8)
    torch.manual_seed(0)
    noise = sobol_noise(like)
    assert noise.shape == like.shape
    assert torch.isfinite(noise).all()
    chance = torch.randn_like(like).mean(0).square().mean()
    assert noise.mean(0).square().mean() < chance / 5
    torch.testing.assert_close(noise.var(), torch.tensor(1.0), atol=0.03, rtol=0)


@pytest.mark.parametrize("make", [antithetic_noise, sobol_noise])
def test_each_trajectory_by_itself_is_standard_normal(make):
    torch.manual_seed(0)
    one = torch.cat([make(torch.zeros(4, 50, 2, 5))[1].flatten() for _ in range(20)])
    assert abs(one.mean()) < 0.03
    assert abs(one.std() - 1) < 0.03
    assert (one.abs() < 1).double().mean().item() == pytest.approx(0.683, abs=0.02)


def test_only_the_first_guidance_is_spread_and_draws_repeat_under_a_seed():
    case = build_case()
    model = case.solver.model
    for kind in ("antithetic", "sobol", "distinct"):
        a, b = (rollout(model, case.x, num_samples=4, depth=2, seed=3, draws=DrawScheme(kind)) for _ in range(2))
        assert torch.equal(a.score, b.score)
    assert DrawScheme().kind == "independent"


def test_occurrence_counts_the_same_answer_before():
    tokens = torch.tensor([[0, 1], [1, 1], [0, 1], [0, 2], [1, 1]])[..., None]  # [M, B, 1]
    assert count_repeats(tokens).tolist() == [[0, 0], [0, 1], [1, 2], [2, 0], [1, 3]]


def test_one_of_each_answer_goes_on_before_a_second_one():
    tokens = torch.tensor([5, 5, 5, 6, 5, 7])[:, None, None]
    chosen = DrawScheme("distinct").select(tokens, 3)
    assert chosen[:, 0].tolist() == [0, 3, 5]
    assert DrawScheme("distinct").select(tokens, 5)[:, 0].tolist() == [0, 3, 5, 1, 2]


def test_distinct_trajectories_differ_at_least_as_much_and_their_work_is_counted():
    case = build_case()
    model, depth = case.solver.model, 3
    scheme = DrawScheme("distinct", oversample=4, steps=1)
    spread = rollout(model, case.x, num_samples=6, depth=depth, draws=scheme)
    assert spread.tokens.shape == (6, 5, 4)
    assert (spread.steps == depth).all()
    assert (spread.work == 6 * depth + 18 * 1).all()

    # where the choice is made at the end, the answers are as distinct as those that began can make them
    at_the_end = DrawScheme("distinct", oversample=4, steps=depth)
    chosen = rollout(model, case.x, num_samples=6, depth=depth, draws=at_the_end, seed=1)
    every = rollout(model, case.x, num_samples=24, depth=depth, seed=1)
    for i in range(5):
        kinds = len(every.tokens[:, i].unique(dim=0))
        assert len(chosen.tokens[:, i].unique(dim=0)) == min(6, kinds)


def test_those_that_begin_stay_within_the_limit():
    case = build_case()
    widths = []

    class Watch(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"].startswith("eps"):
                widths.append(msg["value"][..., 0, 0].numel())

    with Watch():
        rollout(case.solver.model, case.x, num_samples=7, depth=3, draws=DrawScheme("distinct"), max_trajectories=12)
    assert max(widths) <= 12


def test_guidance_that_a_condition_has_fixed_stays():
    case = build_case()
    fixed = torch.full((5, 4, 16), 0.25)
    seen = []

    class Watch(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"] == guidance_site(0):
                seen.append(msg["value"])

    with Watch():
        conditioned = pyro.condition(case.solver.model, {guidance_site(0): fixed})
        rollout(conditioned, case.x, num_samples=2, depth=1, draws=DrawScheme("antithetic"))
    assert (seen[0] == 0.25).all()


def test_another_family_of_priors_is_refused(monkeypatch):
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
    with pytest.raises(UserError, match="leave out halt and draws"):
        rollout(case.solver.model, case.x, num_samples=2, depth=1, draws=DrawScheme("distinct"), history=True)


def test_how_many_begin_and_for_how_long():
    for kind in ("independent", "antithetic", "sobol"):
        scheme = DrawScheme(kind, oversample=4, steps=3)
        assert (scheme.drops, scheme.shared_steps, scheme.num_proposals(5)) == (False, 1, 5)
        tokens = torch.arange(5)[:, None, None].expand(5, 2, 1)
        assert scheme.select(tokens, 3).tolist() == [[0, 0], [1, 1], [2, 2]]
    scheme = DrawScheme("distinct", oversample=4, steps=3)
    assert (scheme.drops, scheme.shared_steps, scheme.num_proposals(5)) == (True, 3, 20)


def test_only_two_kinds_have_draws_of_their_own():
    kinds = {kind: isinstance(DrawScheme(kind).handler(), CoupledDraws) for kind in ("independent", "distinct")}
    assert kinds == {"independent": False, "distinct": False}
    assert [DrawScheme(kind).handler().kind for kind in ("antithetic", "sobol")] == ["antithetic", "sobol"]


def guided(prior, kind, steps=2):
    """A program of two guidance sites, drawn under the handler."""
    with CoupledDraws(kind):
        return [pyro.sample(guidance_site(t), prior) for t in range(steps)]


def test_draws_are_about_the_priors_mean_with_its_scale_and_the_second_guidance_is_left_alone():
    loc, scale = 5 + torch.randn(3, 4, 2), torch.rand(3, 4, 2) + 0.5
    prior = dist.Normal(loc, scale).expand([6, 3, 4, 2]).to_event(2)
    first, second = guided(prior, "antithetic")
    assert first.shape == (6, 3, 4, 2)
    torch.testing.assert_close(first[:3] - loc, loc - first[3:])
    assert not torch.allclose(second[:3] - loc, loc - second[3:])
    many, _ = guided(dist.Normal(loc, scale).expand([4000, 3, 4, 2]).to_event(2), "antithetic")
    torch.testing.assert_close(many.std(0), scale, atol=0.06, rtol=0)
    even, _ = guided(prior, "sobol")
    assert even.shape == (6, 3, 4, 2)


def test_what_is_no_guidance_is_left_alone():
    with CoupledDraws("antithetic") as handler:
        z = pyro.sample("z", dist.Normal(torch.zeros(4, 3), 1.0).to_event(1))
        assert not handler.is_done
    assert not torch.allclose(z[:2], -z[2:])


def test_points_have_no_noise_to_spread():
    from pyro_gram.inference.families import MeanFamily

    with pytest.raises(ConfigError, match="sobol trajectories need a Gaussian prior"):
        guided(MeanFamily().distribution(torch.zeros(2, 3, 4)), "sobol")


def test_each_input_has_a_sobol_sequence_of_its_own_that_is_even_in_every_channel():
    torch.manual_seed(1)
    noise = sobol_noise(torch.zeros(8, 3, 2, 4))
    uniform = torch.distributions.Normal(0.0, 1.0).cdf(noise)
    # Shifted by a random number, the eight points of a channel are still one in each eighth, up to that shift.
    gaps = uniform.sort(0).values.diff(dim=0)
    assert (gaps > 1e-4).all()
    assert (gaps < 0.25).all()
    assert not torch.allclose(noise[:, 0], noise[:, 1])
    again = sobol_noise(torch.zeros(8, 3, 2, 4))
    assert not torch.allclose(noise, again)
    assert sobol_noise(torch.zeros(1, 1, 1, 1)).shape == (1, 1, 1, 1)
