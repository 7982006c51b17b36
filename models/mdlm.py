r"""Masked diffusion language model (MDLM; Sahoo et al., 2024), conditional on x.

At time t each token is masked with probability t. The bound is a weighted cross-entropy of masked tokens,

.. math:: -\log p(y | x) \le E_{t, y_t}\Big[\frac1t \sum_{i: y_{t,i} = [M]} -\log p_\theta(y_i | y_t, x)\Big],

and ``pyro.factor`` adds it to the loss. A draw starts with all tokens masked and reveals them step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, check_range
from pyro_gram.errors import InputError
from pyro_gram.inference.sites import ANSWER, DRAW_ANSWER, plate_shape
from pyro_gram.networks.denoiser import Denoiser
from pyro_gram.networks.embeddings import answer_decoder, answer_encoder
from pyro_gram.networks.relations import close_improbable
from pyro_gram.registry import MODELS
from pyro_gram.spec import TaskSpec

from .direct import OneStepConfig, OneStepModel

MIN_TIME = 1e-3  # the least time in training: the weight 1 / t grows without bound towards t = 0


@dataclass(frozen=True)
class MDLMConfig(OneStepConfig):
    """Sizes, and the length of a draw.

    Tokens that one step reveals are drawn independently. With as many steps as tokens, most tokens are
    revealed together with others. Eight times as many steps reveal most tokens alone, at eight times the cost.

    Attributes:
        sampling_steps: steps of a draw; 0 for the number of tokens, padding not counted.
        floor: tokens with a lower probability than this are not drawn.
    """

    sampling_steps: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, sampling_steps=AT_LEAST_0, floor=(0.0, 0.5))


class Diffusion(OneStepModel):
    """Base class of the diffusion baselines. For an observed y, a factor adds the bound; an unobserved y is drawn."""

    traits = replace(OneStepModel.traits, has_exact_likelihood=False)

    def __init__(self, config: OneStepConfig, spec: TaskSpec, prior: nn.Module, masks: int, uses_time: bool) -> None:
        super().__init__(config, spec, prior)
        answer = answer_encoder(spec, config.width, masks)
        decoder = answer_decoder(spec, config.width, self.has_relations)
        self.denoiser = Denoiser(answer, self.stack(), decoder, config.width, uses_time)

    def respond(self, e_x: Tensor, y: Tensor | None, beta: float) -> tuple[Tensor, Tensor]:
        if self.spec.has_value_positions and self.answer_mask(e_x).shape[-1] > self.spec.output_length:
            raise InputError(f"this diffusion model solves boards of at most {self.spec.output_length} rows")
        if y is not None:
            pyro.factor(ANSWER, -self.loss(e_x, y))
            return e_x, y
        shape = torch.broadcast_shapes(plate_shape(), e_x.shape[:-2])
        tokens, log_p = self.draw(e_x.expand(*shape, *e_x.shape[-2:]))
        point = dist.Delta(tokens, log_density=log_p, event_dim=1)
        return e_x, pyro.sample(ANSWER, point, infer={DRAW_ANSWER: True})

    def loss(self, e_x: Tensor, y: Tensor) -> Tensor:
        """Estimate the bound on -log p(y | x) from one corrupted copy of y, in nats, ``[...]``."""
        raise NotImplementedError

    def predict(self, e_x: Tensor, tokens: Tensor, time: Tensor) -> Tensor:
        """Return the denoiser's logits of the clean answer, ``[..., L_out, classes]``."""
        return self.open_values(self.denoiser(e_x, tokens, time, *self.context))

    def draw(self, e_x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a draw, int64 ``[..., L_out]``, and the summed log probabilities of its tokens, nats, ``[...]``."""
        raise NotImplementedError


@MODELS.register("mdlm")
class MDLM(Diffusion):
    """The masked diffusion language model."""

    Config = MDLMConfig
    config: MDLMConfig

    def __init__(self, config: MDLMConfig, spec: TaskSpec, prior: nn.Module) -> None:
        super().__init__(config, spec, prior, masks=1, uses_time=False)
        self.mask_token = spec.output_classes

    def loss(self, e_x: Tensor, y: Tensor) -> Tensor:
        time = stratified_times(y.shape[:-1], y.device).clamp(min=MIN_TIME)
        is_masked = torch.rand(y.shape, device=y.device) < time[..., None]
        logits = self.predict(e_x, torch.where(is_masked, self.mask_token, y), time)
        log_p = logits.log_softmax(-1).gather(-1, y[..., None]).squeeze(-1)
        return -(log_p * is_masked).sum(-1) / time

    def draw(self, e_x: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.answer_mask(e_x)
        length = mask.shape[-1]
        steps = self.config.sampling_steps or length
        # An input with padding starts later, so that its number of steps is that of its tokens.
        own_steps = self.config.sampling_steps or mask.sum(-1, keepdim=True)
        tokens = torch.full((*e_x.shape[:-2], length), self.mask_token, device=e_x.device)
        log_p = torch.zeros(e_x.shape[:-2], device=e_x.device)
        for step in range(steps, 0, -1):
            time = torch.full(e_x.shape[:-2], step / steps, device=e_x.device)
            logits = close_improbable(self.predict(e_x, tokens, time), self.config.floor)
            prediction = dist.Categorical(logits=logits)
            value = prediction.sample()
            # step counts down to 1. A masked token is revealed with probability 1 / step, and surely at the last step.
            is_revealed = (tokens == self.mask_token) & (torch.rand(tokens.shape, device=e_x.device) < 1 / step)
            is_revealed = is_revealed & (step <= own_steps)
            log_p = log_p + (prediction.log_prob(value) * is_revealed).sum(-1)
            tokens = torch.where(is_revealed, value, tokens)
        return tokens, log_p


def stratified_times(shape: torch.Size, device: torch.device) -> Tensor:
    """Draw stratified times in [0, 1): each time is uniform, but their mean hardly varies between batches."""
    count = max(1, shape.numel())
    times = (torch.arange(count, device=device) / count + torch.rand((), device=device)) % 1
    return times[torch.randperm(count, device=device)].view(shape)
