r"""The amortized guide :math:`q_\phi(\epsilon_t \mid u_t, y)` (Section 2.2).

The paper does not say how y enters; here its embedding is concatenated with u_t, position by position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import family_of
from pyro_gram.inference.families import type_of
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.networks.embeddings import answer_encoder
from pyro_gram.networks.layers import make_stack
from pyro_gram.registry import GUIDES
from pyro_gram.spec import TaskSpec

HALVINGS = 10  # of the interval in which the share is sought that a budget allows


@dataclass(frozen=True)
class AmortizedGuideConfig:
    """Sizes of the posterior.

    Attributes:
        hidden: width of the SwiGLU.
        initial_scale: sigma of every channel before training, as the prior's.
        layers: attention layers over the embedded answer. With none, the posterior of a position sees its own part of
            y only; with some, all of it, so that few positions can say what many need (images).
        heads: attention heads of those layers.
        guided_transitions: transitions of a trajectory after which the guide follows the prior; 0 for none. A guide
            that was trained on few supervision steps knows nothing of deeper ones; it cannot be less than those.
        max_kl: the most that the posterior may say of y at one transition, nats an input; 0 for no limit. Needs a
            Gaussian prior.
    """

    hidden: int = 512
    initial_scale: float = 0.1
    layers: int = 0
    heads: int = 4
    guided_transitions: int = 0
    max_kl: float = 0.0

    def __post_init__(self) -> None:
        check_range(
            self,
            hidden=AT_LEAST_1,
            initial_scale=(0.01, 10),
            layers=AT_LEAST_0,
            heads=AT_LEAST_1,
            guided_transitions=AT_LEAST_0,
            max_kl=AT_LEAST_0,
        )


@GUIDES.register("amortized")
class AmortizedGuide(EffectGuide):
    """A diagonal Gaussian from ``[u_t, embedding of y]``, position by position.

    Args:
        config: sizes.
        spec: shapes of the task.
        model: the generative program.
        width: D.
    """

    Config = AmortizedGuideConfig

    def __init__(self, config: AmortizedGuideConfig, spec: TaskSpec, model: Any, width: int) -> None:
        super().__init__(model)
        self.guided_transitions, self.max_kl = config.guided_transitions, config.max_kl
        self.answer = answer_encoder(spec, width)
        length = max(spec.input_length, spec.output_length)
        self.mix = make_stack("attention", config.layers, length, width, config.heads, config.hidden)
        self.family = family_of(model)
        self.head = self.family.head(self.inputs * width, config.hidden, width, config.initial_scale)

    inputs = 2  # features of a position, in multiples of the width

    def encode(self, x: Tensor | None, y: Tensor) -> Tensor:
        return self.mix(self.answer(y))

    def features(self, u: Tensor, code: Tensor) -> Tensor:
        """What the head of a position sees, ``[..., L, inputs * D]``. The ablations change this."""
        return torch.cat((u, align_answer(code, u)), dim=-1)

    def posterior(self, u: Tensor, code: Tensor, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        answer = self.make_posterior(prior, self.head(self.features(u, code)))
        if not self.max_kl:
            return answer
        if type_of(answer) != "Normal" or type_of(prior) != "Normal":
            raise ConfigError("guide.max_kl needs a Gaussian prior: set it to 0 for one of another family")
        loc, scale = limit_kl(answer.base_dist.loc, answer.base_dist.scale, prior.base_dist, self.max_kl)
        return dist.Normal(loc, scale).to_event(2)

    def make_posterior(self, prior: dist.TorchDistribution, parameters: tuple[Tensor, ...]) -> dist.TorchDistribution:
        """The distribution that the head's parameters mean."""
        return self.family.distribution(*parameters)


def align_answer(code: Tensor, u: Tensor) -> Tensor:
    """The embedded answer ``[..., L', D]`` beside u, ``[..., L, D]``: at the last positions, before it zeros."""
    code = pad(code, (0, 0, u.shape[-2] - code.shape[-2], 0))
    return code.expand(*u.shape[:-1], code.shape[-1])


def limit_kl(loc: Tensor, scale: Tensor, prior: dist.Normal, budget: float) -> tuple[Tensor, Tensor]:
    r"""The Gaussian, drawn towards the prior until it says at most ``budget`` nats (to 2 %).

    It moves along the path that is linear in the mean and in the log of the scale. At the share :math:`\lambda` of the
    way the KL is :math:`\lambda^2` times the whole where the scales are equal; where they are not, the share is found
    by halving.

    Args:
        loc, scale: of the posterior, ``[..., L, D]``.
        prior: p(eps | u), batch shape ``[..., L, D]``; it is not trained through this, only through the KL.
        budget: nats, summed over positions and channels.
    """
    loc_p, scale_p = prior.loc.detach(), prior.scale.detach()
    shift, log_ratio = (loc - loc_p) / scale_p, (scale / scale_p).log()
    with torch.no_grad():
        low, high = (torch.full_like(shift[..., :1, :1], share) for share in (0.0, 1.0))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            over = _kl(middle * shift, middle * log_ratio) > budget
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    shift, log_ratio = high * shift, high * log_ratio
    # What is still over the budget is little, where the KL is quadratic; and this step has a gradient.
    share = (budget / _kl(shift, log_ratio).clamp(min=budget)).sqrt()
    shift, log_ratio = share * shift, share * log_ratio
    return loc_p + shift * scale_p, scale_p * log_ratio.exp()


def _kl(shift: Tensor, log_ratio: Tensor) -> Tensor:
    """KL of a Gaussian from the standard one, summed over positions and channels, ``[..., 1, 1]``."""
    return (0.5 * (shift.square() + (2 * log_ratio).exp() - 1) - log_ratio).sum((-1, -2), keepdim=True)
