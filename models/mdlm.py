r"""Masked diffusion language model (MDLM; Sahoo et al., 2024), conditional on x.

A token is masked by time t with probability t. The bound is a weighted cross-entropy of masked tokens,

.. math:: -\log p(y | x) \le E_{t, y_t}\Big[\frac1t \sum_{i: y_{t,i} = [M]} -\log p_\theta(y_i | y_t, x)\Big],

a plain loss under ``pyro.factor``. A draw starts from masks alone and uncovers tokens step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, check_range
from pyro_gram.inference.sites import ANSWER, DRAW_ANSWER, plate_shape
from pyro_gram.networks.denoiser import Denoiser
from pyro_gram.networks.embeddings import answer_decoder, answer_encoder
from pyro_gram.registry import MODELS
from pyro_gram.spec import TaskSpec
from pyro_gram.system.distributed import for_whole_batch

from .direct import OneStepConfig, OneStepModel

EARLIEST = 1e-3  # the least time that is trained, where 1 / t is large


@dataclass(frozen=True)
class MDLMConfig(OneStepConfig):
    """Sizes, and the length of a draw.

    Tokens that one step uncovers are drawn independently. With as many steps as tokens most are not alone in theirs;
    with eight times as many nearly all are, and a draw costs eight times as much.

    Attributes:
        sampling_steps: of a draw; 0 for as many as the answer has tokens.
    """

    sampling_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, sampling_steps=AT_LEAST_0)


class Diffusion(OneStepModel):
    """What diffusion baselines share: y is a bound under ``pyro.factor`` in training, and a draw otherwise."""

    traits = replace(OneStepModel.traits, has_exact_likelihood=False)

    def __init__(self, config: OneStepConfig, spec: TaskSpec, prior: nn.Module, masks: int, timed: bool) -> None:
        super().__init__(config, spec, prior)
        answer = answer_encoder(spec, config.width, masks)
        self.denoiser = Denoiser(answer, self.stack(), answer_decoder(spec, config.width), config.width, timed)

    def respond(self, e_x: Tensor, y: Tensor | None, beta: float) -> tuple[Tensor, Tensor]:
        if y is not None:
            pyro.factor(ANSWER, -self.loss(e_x, y))
            return e_x, y
        shape = torch.broadcast_shapes(plate_shape(), e_x.shape[:-2])
        tokens, log_p = self.draw(e_x.expand(*shape, *e_x.shape[-2:]))
        drawn = dist.Delta(tokens, log_density=log_p, event_dim=1)
        return e_x, pyro.sample(ANSWER, drawn, infer={DRAW_ANSWER: True})

    def loss(self, e_x: Tensor, y: Tensor) -> Tensor:
        """One draw's estimate of the bound on -log p(y | x), nats, ``[...]``."""
        raise NotImplementedError

    def draw(self, e_x: Tensor) -> tuple[Tensor, Tensor]:
        """A draw, int64 ``[..., L_out]``, and how sure the network was of its tokens, nats, ``[...]``."""
        raise NotImplementedError


@MODELS.register("mdlm")
class MDLM(Diffusion):
    """Masked diffusion."""

    Config = MDLMConfig
    config: MDLMConfig

    def __init__(self, config: MDLMConfig, spec: TaskSpec, prior: nn.Module) -> None:
        super().__init__(config, spec, prior, masks=1, timed=False)
        self.mask = spec.output_classes

    def loss(self, e_x: Tensor, y: Tensor) -> Tensor:
        time = stratified_times(y.shape[:-1], y.device).clamp(min=EARLIEST)
        masked = torch.rand(y.shape, device=y.device) < time[..., None]
        logits = self.denoiser(e_x, torch.where(masked, self.mask, y), time)
        log_p = logits.log_softmax(-1).gather(-1, y[..., None]).squeeze(-1)
        return -(log_p * masked).sum(-1) / time

    def draw(self, e_x: Tensor) -> tuple[Tensor, Tensor]:
        steps = self.config.sampling_steps or self.spec.output_length
        tokens = torch.full((*e_x.shape[:-2], self.spec.output_length), self.mask, device=e_x.device)
        log_p = torch.zeros(e_x.shape[:-2], device=e_x.device)
        for step in range(steps, 0, -1):
            time = torch.full(e_x.shape[:-2], step / steps, device=e_x.device)
            guess = dist.Categorical(logits=self.denoiser(e_x, tokens, time))
            value = guess.sample()
            # A masked token is uncovered with probability (t - s) / t; at the last step all are.
            uncovered = (tokens == self.mask) & (torch.rand(tokens.shape, device=e_x.device) < 1 / step)
            log_p = log_p + (guess.log_prob(value) * uncovered).sum(-1)
            tokens = torch.where(uncovered, value, tokens)
        return tokens, log_p


def stratified_times(shape: torch.Size, device: torch.device) -> Tensor:
    """Uniform times in [0, 1), spread evenly over a batch: each is uniform, their mean hardly varies."""

    def times(count: int) -> Tensor:
        even = (torch.arange(count, device=device) / count + torch.rand((), device=device)) % 1
        return even[torch.randperm(count, device=device)]

    return for_whole_batch(times, max(1, shape.numel())).view(shape)
