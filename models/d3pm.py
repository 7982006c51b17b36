r"""Discrete diffusion (D3PM; Austin et al., 2021), uniform and absorbing, conditional on x.

At each of T times a token keeps its value with probability :math:`\alpha_t`; otherwise it is redrawn from m.
The distribution m is uniform over the classes (kind ``uniform``) or always gives the mask (``absorbing``):

.. math:: q(y_t | y_0) = \bar\alpha_t\, \delta_{y_0} + (1 - \bar\alpha_t)\, m.

The network predicts the clean answer from a corrupted one. The bound is the sum over times of KL(q(y_{t-1} | y_t, y_0)
|| p(y_{t-1} | y_t)). The sum is estimated at one time for each input, and ``pyro.factor`` adds it to the loss. The
training loss also has the paper's auxiliary cross-entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_choice, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import add_training_loss
from pyro_gram.registry import MODELS
from pyro_gram.spec import TaskSpec

from .direct import OneStepConfig
from .mdlm import Diffusion, stratified_times

KINDS = ("uniform", "absorbing")
TINY = 1e-12
FLOOR = 1e-8  # added to the probability of each class at time t - 1


@dataclass(frozen=True)
class D3PMConfig(OneStepConfig):
    """Sizes, and the process of corruption.

    Attributes:
        kind: how tokens are corrupted: ``uniform`` or ``absorbing``.
        diffusion_steps: T, the number of steps of the corruption and of a draw.
        auxiliary_weight: weight of the cross-entropy of the clean answer in the loss.
    """

    kind: str = "absorbing"
    diffusion_steps: int = 64
    auxiliary_weight: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, KINDS)
        check_range(self, diffusion_steps=AT_LEAST_1, auxiliary_weight=AT_LEAST_0)


@MODELS.register("d3pm")
class D3PM(Diffusion):
    """Structured denoising diffusion in discrete space."""

    Config = D3PMConfig
    config: D3PMConfig
    alpha_bar: Tensor
    stationary: Tensor
    floor: Tensor

    def __init__(self, config: D3PMConfig, spec: TaskSpec, prior: nn.Module) -> None:
        masks = int(config.kind == "absorbing")
        if not masks and spec.has_value_positions:
            raise ConfigError(
                "uniform corruption would give tokens values without a position: use --model.kind absorbing"
            )
        super().__init__(config, spec, prior, masks=masks, uses_time=True)
        classes = spec.output_classes
        share = torch.arange(config.diffusion_steps + 1) / config.diffusion_steps
        # alpha_bar is the probability that a token is still clean. The absorbing chain corrupts 1 / T of the tokens at
        # each time. In the uniform chain the probability follows a cosine (as in the paper).
        alpha_bar = 1 - share if masks else (share * math.pi / 2).cos().square()
        alpha_bar[-1] = 0.0  # at time T nothing of y is left, so that the bound has no term for time T
        stationary = (
            one_hot(torch.tensor(classes), classes + 1).float() if masks else torch.full((classes,), 1 / classes)
        )
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)  # [T + 1]
        self.register_buffer("stationary", stationary, persistent=False)  # m, [classes (+ 1)]
        self.register_buffer("floor", FLOOR * (torch.arange(classes + masks) < classes), persistent=False)

    def loss(self, e_x: Tensor, y: Tensor) -> Tensor:
        T = self.config.diffusion_steps
        t = (stratified_times(y.shape[:-1], y.device) * T).long() + 1
        clean_probs = one_hot(y, len(self.stationary)).to(e_x.dtype)
        marginal = self._corrupt(clean_probs, self.alpha_bar[t])
        corrupted_tokens = dist.Categorical(probs=marginal).sample()
        logits = self.predict(e_x, corrupted_tokens, t / T)
        y_0 = self._pad_mask(logits.softmax(-1))
        q, p = self._reverse(clean_probs, corrupted_tokens, t), self._reverse(y_0, corrupted_tokens, t)
        kl = (q * ((q + TINY).log() - (p + TINY).log())).sum((-1, -2))
        cross_entropy = -logits.log_softmax(-1).gather(-1, y[..., None]).sum((-1, -2))
        if self.training:
            add_training_loss("auxiliary", self.config.auxiliary_weight * cross_entropy)
        return T * kl  # at t = 1 the KL is the reconstruction, because q is a point mass at y

    def draw(self, e_x: Tensor) -> tuple[Tensor, Tensor]:
        T, mask = self.config.diffusion_steps, self.answer_mask(e_x)
        shape = (*e_x.shape[:-2], mask.shape[-1])
        tokens = dist.Categorical(probs=self.stationary).sample(shape)
        log_p = torch.zeros(shape[:-1], device=e_x.device)
        for step in range(T, 0, -1):
            t = torch.full(shape[:-1], step, device=e_x.device)
            y_0 = self._pad_mask(self.predict(e_x, tokens, t / T).softmax(-1))
            reverse = dist.Categorical(probs=self._reverse(y_0, tokens, t))
            new_tokens = reverse.sample()
            log_p = log_p + (reverse.log_prob(new_tokens) * ((new_tokens != tokens) & mask)).sum(-1)
            tokens = new_tokens
        return tokens, log_p

    def _pad_mask(self, probabilities: Tensor) -> Tensor:
        """Append the mask's probability, 0, to those of the classes. Uniform corruption has no mask."""
        return pad(probabilities, (0, len(self.stationary) - probabilities.shape[-1]))

    def _corrupt(self, probabilities: Tensor, alpha_bar: Tensor) -> Tensor:
        alpha_bar = alpha_bar[..., None, None]
        return alpha_bar * probabilities + (1 - alpha_bar) * self.stationary

    def _reverse(self, clean_probs: Tensor, corrupted_tokens: Tensor, t: Tensor) -> Tensor:
        """Return q(y_{t-1} | y_t, y_0), ``[..., L_out, classes (+ 1)]``.

        The result is p(y_{t-1} | y_t) if ``clean_probs`` is a prediction.
        """
        alpha = (self.alpha_bar[t] / self.alpha_bar[t - 1].clamp(min=TINY))[..., None, None]  # alpha_t
        is_same = one_hot(corrupted_tokens, len(self.stationary))
        transition = alpha * is_same + (1 - alpha) * self.stationary[corrupted_tokens][..., None]
        # Without the floor, a prediction that excludes the clean answer could give 0 / 0, which has no gradient.
        joint = transition * (self._corrupt(clean_probs, self.alpha_bar[t - 1]) + self.floor)
        return joint / joint.sum(-1, keepdim=True)
