import pyro.distributions as dist
import pytest
import torch
from pyro_gram.models.mdlm import stratified_times
from torch.overrides import TorchFunctionMode

from pyro_gram.errors import ConfigError, UserError
from pyro_gram.system import distributed
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup, check_batch, start

DRAWS = {
    "rand": lambda t: torch.rand(t.shape),
    "rand by numbers": lambda t: torch.rand(*t.shape),
    "randn by size": lambda t: torch.randn(size=t.shape),
    "randint": lambda t: torch.randint(2, 9, t.shape),
    "like": torch.randn_like,
    "normal": lambda t: torch.normal(torch.zeros_like(t), torch.ones_like(t)),
    "in place": lambda t: torch.empty_like(t).exponential_(),
    "Normal": lambda t: dist.Normal(t, 1.0).to_event(2).rsample(),
    "StudentT": lambda t: dist.StudentT(3.0, t, 1.0).rsample(),
    "Bernoulli": lambda t: dist.Bernoulli(t.sigmoid()).sample(),
    "Categorical": lambda t: dist.Categorical(logits=t).sample(),
    "relaxed": lambda t: dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=t).rsample(),
    "Laplace": lambda t: dist.Laplace(t, 1.0).rsample(),
    "mixture": lambda t: dist.MixtureSameFamily(dist.Categorical(logits=t), dist.Normal(t, 1.0)).sample(),
    "normal by size": lambda t: torch.normal(0.0, 1.0, t.shape),
    "normal of one width": lambda t: torch.normal(t, torch.ones(())),
    "broadcast normal": lambda t: torch.normal(t, torch.ones(1, 1, 16)),
    "randint like": lambda t: torch.randint_like(t, 9),
    "random": lambda t: torch.empty_like(t).random_(9),
    "bernoulli": lambda t: t.sigmoid().bernoulli(),
    "multinomial": lambda t: t[:, 0].exp().multinomial(2),
    "dropout": lambda t: torch.nn.functional.dropout(t, 0.5),
    "Beta": lambda t: dist.Beta(t.exp(), 1.0 + t.exp()).sample(),
    "Dirichlet": lambda t: dist.Dirichlet(t.exp()).sample(),
    "Binomial": lambda t: torch.binomial(torch.full_like(t, 4.0), t.sigmoid()),
    "times of a diffusion": lambda t: stratified_times(t.shape[:1], t.device),
    "gamma": lambda t: dist.Gamma(t.exp(), t.exp()).rsample(),
}


class Noting(TorchFunctionMode):
    """Keeps what draws depend on, as the processes would give it to each other."""

    def __init__(self):
        super().__init__()
        self.given = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in distributed.BY_VALUE:
            self.given += torch.broadcast_tensors(*args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", DRAWS)
def test_shares_of_a_draw_are_those_of_one_process(name, monkeypatch):
    whole = torch.linspace(-1, 1, 6 * 4 * 16).view(6, 4, 16)
    torch.manual_seed(0)
    with Noting() as noting:
        expected = DRAWS[name](whole)
    after = torch.rand(3)
    given = noting.given * 2
    monkeypatch.setattr(ProcessGroup, "all_gather", lambda *_: given.pop(0))
    for rank in range(2):
        processes = ProcessGroup(rank, 2)
        torch.manual_seed(0)
        with processes.draws():
            share = DRAWS[name](processes.shard(whole))
        torch.testing.assert_close(share, processes.shard(expected))
        assert torch.equal(torch.rand(3), after)  # and the generators stay together


def test_a_batch_may_lie_along_another_dimension_and_what_has_none_is_drawn_once():
    torch.manual_seed(0)
    expected, number = torch.empty(3, 4).exponential_(), torch.randint(10, ())
    for rank in range(2):
        processes = ProcessGroup(rank, 2)
        torch.manual_seed(0)
        with processes.draws(dim=1):
            share = torch.empty(3, 2).exponential_()
            assert torch.equal(torch.randint(10, ()), number)
            assert dist.Normal(0.0, 1.0).sample().shape == ()
        assert torch.equal(share, expected[:, 2 * rank : 2 * rank + 2])


def test_a_gamma_keeps_its_gradient(monkeypatch):
    rates = torch.linspace(0.5, 3, 6).requires_grad_()
    torch.manual_seed(0)
    drawn = dist.Gamma(rates, 1.0).rsample()
    (expected,) = torch.autograd.grad(drawn.square().sum(), rates)
    monkeypatch.setattr(ProcessGroup, "all_gather", lambda *_: rates.detach())
    for rank in range(2):
        torch.manual_seed(0)
        with ProcessGroup(rank, 2).draws():
            share = dist.Gamma(ProcessGroup(rank, 2).shard(rates), 1.0).rsample()
        (found,) = torch.autograd.grad(share.square().sum(), rates)
        torch.testing.assert_close(ProcessGroup(rank, 2).shard(found), ProcessGroup(rank, 2).shard(expected))


def test_draws_that_are_none_of_rows_are_refused():
    with ProcessGroup(0, 2).draws(), pytest.raises(UserError, match="randperm cannot be shared by several processes"):
        torch.randperm(4)


def test_alone_nothing_is_exchanged():
    t = torch.randn(3)
    assert SINGLE_PROCESS.shard(t) is t
    assert SINGLE_PROCESS.all_reduce_mean(t) is t
    assert SINGLE_PROCESS.all_gather(t) is t
    assert SINGLE_PROCESS.from_main(2.0) == SINGLE_PROCESS.all_reduce_max(2.0) == 2.0
    assert SINGLE_PROCESS.is_main
    SINGLE_PROCESS.all_reduce_mean_([t])
    SINGLE_PROCESS.barrier()


def test_a_batch_that_cannot_be_shared_is_refused():
    check_batch(8, ProcessGroup(1, 4))
    with pytest.raises(ConfigError, match="a batch of 8 cannot be shared by 3 processes"):
        check_batch(8, ProcessGroup(0, 3))


def test_several_processes_need_a_device_with_collectives(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="cannot share a run on mps"):
        start(torch.device("mps"))
    monkeypatch.delenv("WORLD_SIZE")
    assert start(torch.device("cpu")) == (SINGLE_PROCESS, torch.device("cpu"))
