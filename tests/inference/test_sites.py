"""The helpers make the sites that programs and inference share, with the right names, plates and shapes."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyro_gram.inference.sites import (
    data_plates,
    guidance_site,
    plate_shape,
    proposal_site,
    record_state,
    register_parameters,
    sample_halt_and_value,
    transition_index,
)
from pyro_gram.networks.core import LatentState


def test_the_transition_of_a_site_is_read_from_its_name():
    assert [transition_index(guidance_site(t)) for t in (0, 7, 12)] == [0, 7, 12]
    for name in ("y", "eps", "eps_", "eps_a", "eps_1_2", "u_0", proposal_site(3), "epsilon_1", "my_eps_1"):
        assert transition_index(name) is None


def test_the_last_batch_dimension_is_the_data():
    with data_plates(torch.Size((2, 3, 5))):
        trace = poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).get_trace()
        assert plate_shape() == (2, 3, 5)
    frames = {f.name: (f.dim, f.size) for f in trace.nodes["z"]["cond_indep_stack"]}
    assert frames == {"data": (-1, 5), "data_1": (-2, 3), "data_2": (-3, 2)}
    assert plate_shape() == ()
    with data_plates(torch.Size(())), pyro.plate("a", 4, dim=-3):
        assert plate_shape() == (4, 1, 1)


def test_a_sequential_plate_gives_no_dimension():
    for _ in pyro.plate("one_by_one", 2):
        assert plate_shape() == ()


def test_record_state_makes_two_deterministic_sites():
    state = LatentState(torch.randn(5, 4, 3), torch.randn(5, 4, 3))
    with data_plates(torch.Size((5,))):
        trace = poutine.trace(lambda: record_state(state)).get_trace()
    for name, value in (("h", state.h), ("l", state.l)):
        site = trace.nodes[name]
        assert site["value"] is value
        assert site["infer"]["_deterministic"]
        assert site["fn"].event_dim == 2
    trace.compute_log_prob()
    assert trace.log_prob_sum() == 0


def test_without_heads_there_are_no_sites_of_heads():
    likelihood = dist.Categorical(logits=torch.zeros(5, 4, 3)).to_event(1)
    h = torch.zeros(5, 4, 2)
    assert not poutine.trace(lambda: sample_halt_and_value(None, h, h, likelihood)).get_trace().stochastic_nodes


def test_parameters_are_registered_only_under_handlers_and_not_in_the_global_store():
    module = nn.Linear(2, 1)
    register_parameters("part", module)
    assert len(pyro.get_param_store()) == 0
    trace = poutine.trace(lambda: register_parameters("part", module)).get_trace()
    assert set(trace.param_nodes) == {"part.weight", "part.bias"}
    for name, value in module.named_parameters():
        site = trace.nodes[f"part.{name}"]
        assert site["value"].unconstrained() is value
        assert site["value"].data_ptr() == value.data_ptr()
        assert not site["value"].requires_grad
    assert len(pyro.get_param_store()) == 0
