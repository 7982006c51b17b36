"""Compare TorchOptim with torch's own optimizers, and its schedule with the closed form."""

import math

import pytest
import torch
from torch import nn

from pyro_gram.training.optimizer import EMBEDDING, OptimConfig, TorchOptim, hidden_matrices

CONFIG = OptimConfig(lr=0.03, weight_decay=0.2, beta1=0.8, beta2=0.9, clip=0.7, warmup=4, min_lr_ratio=0.25)


class Net(nn.Module):
    """Three linear layers, and an embedding that has its own learning rate."""

    def __init__(self):
        super().__init__()
        self.encoder, self.core, self.decoder = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        setattr(self, EMBEDDING, nn.Parameter(torch.randn(3)))

    def forward(self, x):
        return self.decoder(self.core(self.encoder(x + getattr(self, EMBEDDING)))).square().sum()


@pytest.mark.parametrize(("warmup", "update", "factor"), [(4, 0, 0.25), (4, 2, 0.75), (4, 3, 1), (4, 9, 1), (0, 0, 1)])
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0, 1.2])
def test_the_rate_rises_linearly_and_falls_along_a_half_cosine(warmup, update, factor, progress):
    config = OptimConfig(lr=2.0, warmup=warmup, min_lr_ratio=0.25)
    cosine = 0.25 + 0.75 * (1 + math.cos(math.pi * min(progress, 1))) / 2
    assert config.rate(update, progress) == pytest.approx(2.0 * factor * cosine)


@pytest.mark.parametrize("embedding", [{}, {"embedding_lr": 0.3, "embedding_decay": 0.5}])
def test_updates_are_torchs_adamw_with_a_clipped_gradient_and_the_rate_of_the_schedule(embedding):
    config = OptimConfig(**{**vars(CONFIG), **embedding})
    net, other = Net(), Net()
    other.load_state_dict(net.state_dict())
    optim = TorchOptim({"net": net}, config)
    parameters = [p for n, p in other.named_parameters() if n != EMBEDDING]
    main_adamw = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.2, betas=(0.8, 0.9))
    embedding_adamw = torch.optim.AdamW([getattr(other, EMBEDDING)], lr=1.0, betas=(0.8, 0.9),
                            weight_decay=config.embedding_decay)  # fmt: skip
    for update in range(6):
        x = torch.randn(5, 3)
        optim.progress = update / 6
        net(x).backward()
        optim(list(net.parameters()))
        other(x).backward()
        norm = torch.cat([p.grad.flatten() for p in other.parameters()]).norm()
        for p in other.parameters():
            p.grad.mul_(min(1.0, 0.7 / norm.item()))
        rate = config.rate(update, update / 6)
        main_adamw.param_groups[0]["lr"] = rate
        embedding_adamw.param_groups[0]["lr"] = rate * (10 if embedding else 1)
        main_adamw.step(), embedding_adamw.step(), other.zero_grad()
        assert optim.num_updates == update + 1
        assert all(p.grad is None for p in net.parameters())
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4, msg=name)


def test_clipping_returns_the_unclipped_norm_and_a_step_clears_the_gradients():
    net = Net()
    optim = TorchOptim({"net": net}, CONFIG)
    (100 * net(torch.ones(5, 3))).backward()
    norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
    assert norm > 0.7
    assert optim.clip_gradients().item() == pytest.approx(norm)
    assert torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item() == pytest.approx(0.7, rel=1e-3)
    assert optim.rate == CONFIG.rate(0, 0.0)
    optim.step()
    assert all(p.grad is None for p in net.parameters())
    assert optim.num_updates == 1


def test_muons_matrices_lie_between_the_embeddings_and_the_logits():
    net = Net()
    assert hidden_matrices({"net": net}) == ["net.core.weight"]
    optim = TorchOptim({"net": net}, OptimConfig(hidden_optimizer="muon", lr=0.1, weight_decay=0.3))
    assert [len(o.param_groups[0]["params"]) for o in optim.optimizers] == [5, 1]
    adamw, muon = optim.optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert muon.param_groups[0]["params"][0] is net.core.weight
    assert muon.param_groups[0]["weight_decay"] == 0.3
    assert muon.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    assert [g["lr"] for g in optim.groups] == [0.1] * 3
    assert len(TorchOptim({"net": net}, OptimConfig()).optimizers) == 1
    assert adamw.param_groups[1]["params"][0] is getattr(net, EMBEDDING)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_that_loads_a_state_goes_on_as_the_one_that_saved_it(name):
    config = OptimConfig(**{**vars(CONFIG), "hidden_optimizer": name})
    net, other = Net(), Net()
    optim, other_optim = TorchOptim({"net": net}, config), TorchOptim({"net": other}, config)
    x = torch.randn(5, 3)

    def step(module, optimizer):
        module(x).backward()
        optimizer(list(module.parameters()))

    step(net, optim), step(net, optim)
    state = optim.state_dict()
    assert int(state["num_updates"]) == 2
    other.load_state_dict(net.state_dict())
    other_optim.load_state_dict({k: v.clone() for k, v in state.items()})
    assert other_optim.num_updates == 2
    step(net, optim), step(other, other_optim)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    for damaged_state in (
        {**state, "net.core.bias/step": torch.zeros(1)},
        {**state, "net.core.bias/exp_avg": torch.zeros(3)},
        {**state, "net.core.bias/exp_avg": torch.zeros(4, dtype=torch.long)},
        {k: v for k, v in state.items() if k != "net.core.bias/step"},
    ):
        with pytest.raises(KeyError, match=r"net\.core\.bias"):
            other_optim.load_state_dict(damaged_state)
    new_optim = TorchOptim({"net": Net()}, config)
    new_optim.load_state_dict({"num_updates": torch.tensor(7)})  # parameters that never had a gradient
    assert (new_optim.num_updates, len(new_optim.state_dict())) == (7, 1)
