import pytest
import torch

from pyro_gram.errors import ConfigError
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup, check_batch, start


def test_the_shards_of_a_batch_add_up_to_the_batch():
    batch = torch.arange(24).view(6, 4)
    groups = [ProcessGroup(rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([group.shard(batch) for group in groups]), batch)
    assert torch.equal(torch.cat([group.shard(batch, 1) for group in groups], 1), batch)
    assert [group.is_main for group in groups] == [True, False]


def test_a_single_process_exchanges_nothing():
    t = torch.randn(3)
    before = t.clone()
    assert SINGLE_PROCESS.shard(t) is t
    assert SINGLE_PROCESS.all_gather(t) is t
    assert SINGLE_PROCESS.from_main(2.0) == SINGLE_PROCESS.all_reduce_max(2.0) == 2.0
    assert SINGLE_PROCESS.all_equal(2.0)
    assert SINGLE_PROCESS.is_main
    SINGLE_PROCESS.all_reduce_mean_([t])
    SINGLE_PROCESS.broadcast_([t])
    SINGLE_PROCESS.barrier()
    assert torch.equal(t, before)


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
