"""The terms of a bound equal sums that are computed by hand, for traces with few sites."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch.distributions import kl_divergence

from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import HALTED, LOSS_ONLY
from pyro_gram.inference.terms import (
    StepTerms,
    check_guide_sites,
    counted_sites,
    divergence,
    guidance_sites,
    is_delta,
    is_shared,
    log_prob_of,
    per_input,
    read_terms,
)
from pyro_gram.networks.core import LatentState

B = 3
LOC = torch.tensor([0.5, -1.0, 2.0])


def model(halted=False):
    with pyro.plate("data", B, dim=-1):
        z = pyro.sample("eps_0", dist.Normal(torch.zeros(B), 1.0))
        with poutine.mask(mask=torch.tensor([True, False, True])):
            z = z + pyro.sample("eps_1", dist.Normal(z, 2.0))
        with poutine.mask(mask=False):
            pyro.sample("eps_2", dist.Normal(z, 2.0))
        with poutine.scale(scale=7.0):  # the terms of the ELBO contain no scales
            c = pyro.sample("c", dist.Normal(z, 3.0))
        pyro.deterministic("u_0", z)
        pyro.deterministic("h", z.expand(B))
        pyro.deterministic("l", -z.expand(B))
        if halted:
            pyro.deterministic(HALTED, z > 0)
        pyro.sample("head", dist.Normal(0.0, 1.0), obs=LOC, infer={LOSS_ONLY: True})
        pyro.sample("y", dist.Normal(c, 0.5), obs=LOC)
        pyro.sample("more", dist.Normal(c, 1.0), obs=LOC)  # a site after y counts too


def guide():
    with pyro.plate("data", B, dim=-1):
        noise = pyro.sample("noise", dist.Normal(LOC, 0.1), infer={"is_auxiliary": True})
        pyro.sample("eps_0", dist.Normal(LOC, 0.5))
        with poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("eps_1", dist.Normal(-LOC, 1.5))
        with poutine.mask(mask=False):
            pyro.sample("eps_2", dist.Normal(-LOC, 1.5))
        pyro.sample("c", dist.Delta(noise, log_density=-noise))


def traces(model=model):
    guide_trace = poutine.trace(guide).get_trace()
    return poutine.trace(poutine.replay(model, guide_trace)).get_trace(), guide_trace


def test_terms_are_read_from_both_traces():
    p, q = traces()
    terms = read_terms(p, q)
    value = {n: q.nodes[n]["value"] for n in ("noise", "eps_0", "eps_1", "c")}
    assert terms.reconstruction.tolist() == pytest.approx((-dist.Normal(value["c"], 0.5).log_prob(LOC)).tolist())
    first_kl = kl_divergence(dist.Normal(LOC, 0.5), dist.Normal(torch.zeros(B), 1.0))
    second_kl = kl_divergence(dist.Normal(-LOC, 1.5), dist.Normal(value["eps_0"], 2.0))
    second_kl[1] = 0  # the second input is masked
    torch.testing.assert_close(terms.kl, torch.stack((first_kl, second_kl)))  # eps_2 is masked and has no KL
    z = value["eps_0"] + value["eps_1"]
    other_terms = (
        -value["noise"]  # log q of c, the log density of its Delta
        - dist.Normal(z, 3.0).log_prob(value["c"])
        - dist.Normal(value["c"], 1.0).log_prob(LOC)
        + dist.Normal(LOC, 0.1).log_prob(value["noise"])
    )
    torch.testing.assert_close(terms.other_terms, other_terms)
    torch.testing.assert_close(terms.elbo, -terms.reconstruction - first_kl - second_kl - other_terms)
    torch.testing.assert_close(terms.means, torch.stack((terms.reconstruction.mean(), (first_kl + second_kl).mean())))
    assert torch.equal(terms.state.h, z)
    assert torch.equal(terms.state.l, -z)
    assert terms.halted is None


def test_known_kls_are_not_computed_again():
    p, q = traces()
    plain_terms = read_terms(p, q)
    known_kls = {"eps_1": torch.tensor([5.0, 6.0, 7.0], requires_grad=True)}
    terms = read_terms(p, q, known_kls)
    assert torch.equal(terms.kl[1], torch.tensor([5.0, 6.0, 7.0]))
    torch.testing.assert_close(terms.kl[0], plain_terms.kl[0])
    assert not terms.kl.requires_grad


def test_without_guidance_there_is_no_kl():
    def program():
        with pyro.plate("data", B, dim=-1):
            for name in ("h", "l"):
                pyro.deterministic(name, LOC)
            pyro.sample("y", dist.Normal(LOC, 1.0), obs=LOC)

    trace = poutine.trace(program).get_trace()
    terms = read_terms(trace, poutine.trace(lambda: None).get_trace())
    assert terms.kl.shape == (0, B)
    assert (terms.other_terms == 0).all()
    torch.testing.assert_close(terms.elbo, dist.Normal(0.0, 1.0).log_prob(torch.zeros(B)))


def test_halted_is_read_from_its_site():
    torch.manual_seed(1)
    h = read_terms(*traces()).state.h
    torch.manual_seed(1)
    terms = read_terms(*traces(lambda: model(halted=True)))
    assert terms.halted.tolist() == (h > 0).tolist()


def test_deterministic_masked_and_loss_only_sites_do_not_count():
    p, q = traces()
    assert [n for n, _ in counted_sites(p)] == ["eps_0", "eps_1", "c", "y", "more"]
    assert [n for n, _ in counted_sites(q)] == ["noise", "eps_0", "eps_1", "c"]
    assert guidance_sites(p) == ["eps_0", "eps_1", "eps_2"]
    conditioned_trace = poutine.trace(pyro.condition(model, {"eps_1": LOC})).get_trace()
    assert guidance_sites(conditioned_trace) == ["eps_0", "eps_2"]


def test_the_density_of_a_site_is_masked_and_not_scaled():
    p, _ = traces()
    for is_computed in (False, True):
        if is_computed:
            p.compute_log_prob()
        for name, mask in (("eps_1", torch.tensor([1.0, 0.0, 1.0])), ("c", torch.ones(B))):
            site = p.nodes[name]
            torch.testing.assert_close(log_prob_of(site), site["fn"].log_prob(site["value"]) * mask)


def test_missing_sites_of_guide_and_model_are_named():
    p, q = traces()
    check_guide_sites(p, q)
    for name in ("eps_0", "c"):
        del q.nodes[name]
    with pytest.raises(ConfigError, match="the guide does not sample 'eps_0', 'c'"):
        check_guide_sites(p, q)
    with pytest.raises(ConfigError, match="does not sample"):
        read_terms(p, q)
    p, q = traces()
    p.remove_node("y")
    with pytest.raises(ConfigError, match="needs the sites 'y', 'h' and 'l'"):
        read_terms(p, q)


def test_a_divergence_is_the_closed_form_or_the_estimate_at_the_draw():
    def site(fn, value=LOC, mask=None):
        return {"fn": fn, "value": value, "mask": mask, "cond_indep_stack": ()}

    normal, student_t, wide_normal = dist.Normal(LOC, 2.0), dist.StudentT(3.0, LOC, 2.0), dist.Normal(LOC, 3.0)
    mask = torch.tensor([True, True, False])
    closed_form = divergence(site(normal, mask=mask), site(wide_normal))
    torch.testing.assert_close(closed_form, kl_divergence(normal, wide_normal) * mask)
    estimate = divergence(site(normal), site(student_t))
    torch.testing.assert_close(estimate, normal.log_prob(LOC) - student_t.log_prob(LOC))
    assert (divergence(site(wide_normal), site(wide_normal)) == 0).all()
    assert divergence(site(wide_normal), site(wide_normal)).shape == (B,)
    point = dist.Delta(LOC, log_density=0.25)
    torch.testing.assert_close(divergence(site(point), site(wide_normal)), 0.25 - wide_normal.log_prob(LOC))
    assert [is_delta(d) for d in (point, point.to_event(1), normal, normal.to_event(1))] == [True, True, False, False]


def make_site(**dims):
    """Return a site within plates. Each keyword names a plate; its value is the dimension of that plate."""
    frames = [CondIndepStackFrame(name, dim, 1, 0) for name, dim in dims.items()]
    return {"cond_indep_stack": tuple(frames)}


DATA, BOTH = {"data": -1}, {"data": -1, "particles": -2}
NUMBERS = torch.arange(24.0).view(2, 4, 3)


@pytest.mark.parametrize(
    ("site_plates", "term", "y_plates", "shape", "expected"),
    [
        ({**DATA, "inner": -2, "other": -3}, NUMBERS, DATA, (3,), NUMBERS.sum((0, 1))),
        ({**BOTH, "other": -3}, NUMBERS, BOTH, (4, 3), NUMBERS.sum(0)),
        (DATA, torch.arange(3.0), BOTH, (2, 3), torch.arange(3.0).expand(2, 3) / 2),
        ({"particles": -2}, torch.tensor([[6.0], [12.0]]), BOTH, (2, 3), torch.tensor([[2.0] * 3, [4.0] * 3])),
        ({"classes": -1}, torch.tensor([1.0, 2.0, 3.0]), DATA, (3,), torch.full((3,), 2.0)),
        ({"classes": -1}, torch.tensor([1.0, 2.0]), DATA, (3,), torch.ones(3)),
        ({}, torch.tensor(6.0), BOTH, (2, 3), torch.ones(2, 3)),
        ({}, torch.arange(3.0), {}, (3,), torch.arange(3.0)),
        ({}, torch.tensor([6.0]), {}, (3,), torch.full((3,), 2.0)),
        ({"particles": -2}, torch.ones(2, 3), {"particles": -2}, (2, 3), torch.ones(2, 3)),
        ({"classes": -1}, torch.tensor([1.0, 2.0, 3.0]), {}, (3,), torch.full((3,), 2.0)),
    ],
)
def test_a_term_is_distributed_over_inputs_and_keeps_its_sum(site_plates, term, y_plates, shape, expected):
    terms = per_input("c", make_site(**site_plates), term, make_site(**y_plates), torch.Size(shape))
    torch.testing.assert_close(terms, expected)
    torch.testing.assert_close(terms.sum(), term.sum())


def test_inputs_share_the_sites_outside_their_plate():
    assert is_shared(make_site(classes=-1), make_site(data=-1))
    assert not is_shared(make_site(data=-1, inner=-2), make_site(data=-1))
    assert is_shared(make_site(), make_site(batch=-1, trajectories=-2))
    assert not is_shared(make_site(batch=-1), make_site(batch=-1, trajectories=-2))
    shared_site, input_site = ({**make_site(), "fn": dist.Normal(torch.zeros(n), 1.0)} for n in (1, 3))
    assert is_shared(shared_site, input_site)
    assert is_shared({**make_site(), "fn": dist.Normal(0.0, 1.0)}, input_site)
    assert not is_shared(input_site, input_site)
    assert not is_shared(shared_site, shared_site)


def test_the_elbo_is_the_sum_of_its_terms():
    state = LatentState(torch.zeros(2), torch.zeros(2))
    terms = StepTerms(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), state, None,
                      torch.tensor([7.0, -8.0]), torch.zeros(2))  # fmt: skip
    assert terms.elbo.tolist() == [-1 - 3 - 5 - 7, -2 - 4 - 6 + 8]
    assert terms.means.tolist() == [1.5, 9.0]
