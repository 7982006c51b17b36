"""Where a batch stands between two of its updates."""

import torch

from pyro_gram.networks.core import LatentState
from pyro_gram.training.pause import Inside, random_state, set_random_state

CPU = torch.device("cpu")


def test_a_batch_that_is_put_down_is_taken_up_as_it_was():
    state = LatentState(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    terms, seen = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])], [torch.tensor(5.0)]
    inside = Inside(state, terms, 6, seen)
    tensors = inside.tensors(CPU)
    again = Inside.from_tensors(tensors, CPU)
    assert torch.equal(again.state.h, state.h)
    assert torch.equal(again.state.l, state.l)
    assert [t.tolist() for t in again.terms] == [[1, 2], [3, 4]]
    assert [t.item() for t in again.seen] == [5]
    assert again.first == 6
    assert torch.equal(again.random["cpu"], torch.get_rng_state())
    bare = Inside.from_tensors(Inside().tensors(CPU), CPU)
    assert (bare.state, bare.terms, bare.seen, bare.first) == (None, [], [], -1)
    assert Inside.from_tensors({}, CPU) is None


def test_the_generators_go_on_from_where_they_were():
    kept = random_state(CPU)
    first = torch.rand(4)
    set_random_state(kept, CPU)
    assert torch.equal(torch.rand(4), first)
    assert set(kept) == {"cpu"}
