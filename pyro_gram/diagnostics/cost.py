"""What a sample costs: a count of layers, which is the same on every machine."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_gram.networks.layers import Block
from pyro_gram.sampling.rollout import isolated_rng, run_steps, to_device_of


def layers_a_sample(model: nn.Module, x: Tensor | None, depth: int) -> int:
    """How many layers one sample passes through, counted while one is drawn.

    A layer is a ``networks.layers.Block``: attention, or SwiGLU over positions, and a SwiGLU over channels. Heads,
    embeddings and decoders are left out, and every pass counts the same, over however many positions it goes: those of
    an autoregressive model that draws token after token are shorter than those of a recursion.

    Args:
        model: the program, with a prior that can be sampled.
        x: one input, int64 ``[1, *event]``; None for p(x).
        depth: supervision steps.
    """
    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += 1

    hooks = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, Block)]
    try:
        with isolated_rng(model, x):
            run_steps(model, to_device_of(model, x), None, 1, depth)
    finally:
        for hook in hooks:
            hook.remove()
    return count
