"""From the final high-level state to logits over answers."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_gram.networks.layers import init_linear_


class TokenDecoder(nn.Module):
    """Reads the last ``length`` positions of h. ``[..., L, D] -> [..., length, classes]``.

    The answer stands at the end of the sequence: before it may stand puzzle tokens and input-only tokens.
    """

    def __init__(self, length: int, classes: int, width: int) -> None:
        super().__init__()
        self.length = length
        self.head = init_linear_(nn.Linear(width, classes))

    def forward(self, h: Tensor) -> Tensor:
        return self.head(h[..., -self.length :, :])
