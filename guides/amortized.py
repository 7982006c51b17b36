r"""The amortized guide :math:`q_\phi(\epsilon_t \mid u_t, y)` (Section 2.2).

The paper does not say how y enters the guide. Here the embedding of y is concatenated with u_t at each position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import pad

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import family_of
from pyro_gram.inference.families import neutralize_padding, type_of
from pyro_gram.inference.guide import EffectGuide, padding_mask
from pyro_gram.networks.core import make_stack
from pyro_gram.networks.embeddings import answer_encoder
from pyro_gram.networks.relations import check_mixer
from pyro_gram.registry import GUIDES
from pyro_gram.spec import TaskSpec

BISECTIONS = 10  # steps of the bisection in limit_kl


@dataclass(frozen=True)
class AmortizedGuideConfig:
    """Sizes of the posterior.

    Attributes:
        hidden: width of the SwiGLU.
        initial_scale: sigma of every channel before training, as in the prior's config.
        layers: attention layers over the embedded answer. With 0 layers, the posterior at a position sees only
            the token of y at this position.
        heads: attention heads of those layers.
        guided_transitions: number of transitions after which the guide follows the prior; 0 for never. It must be at
            least the number of transitions in training. At later transitions the guide has not been trained.
        max_kl: the largest KL of a transition, nats per input; 0 for no limit. Only for a Gaussian prior.
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
    """Compute a posterior from ``[u_t, embedding of y]`` at each position, by default a diagonal Gaussian.

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
        has_relations = getattr(poutine.unwrap(model), "has_relations", False)
        mixer = "relations" if has_relations else "attention"
        check_mixer(mixer, spec, config.heads if config.layers else 0, field="guide.heads")
        self.heads, self.structure_of = config.heads, spec.structure if has_relations else None
        self.mix = make_stack(mixer, config.layers, length, width, config.heads, config.hidden)
        self.family = family_of(model)
        self.head = self.family.head(self.inputs * width, config.hidden, width, config.initial_scale)

    inputs = 2  # the number of features at each position, in multiples of the width

    def encode(self, x: Tensor | None, y: Tensor) -> Tensor:
        if self.structure_of is None or not len(self.mix) or x is None:
            return self.mix(self.answer(y))
        return self.mix(self.answer(y), self.structure_of(x).attention_bias(self.heads))

    def features(self, u: Tensor, code: Tensor) -> Tensor:
        """Return the input of the head, ``[..., L, inputs * D]``. Ablations override this method."""
        return torch.cat((u, align_answer(code, u)), dim=-1)

    def posterior(self, u: Tensor, code: Tensor, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        q = self.make_posterior(prior, self.head(self.features(u, code)))
        if not self.max_kl:
            return q
        q = neutralize_padding(q, padding_mask(self.model))  # so that padding has no share of the KL
        if type_of(q) != "Normal" or type_of(prior) != "Normal":
            raise ConfigError("guide.max_kl needs a Gaussian prior: set guide.max_kl to 0 for other priors")
        loc, scale = limit_kl(q.base_dist.loc, q.base_dist.scale, prior.base_dist, self.max_kl)
        return dist.Normal(loc, scale).to_event(2)

    def make_posterior(self, prior: dist.TorchDistribution, parameters: tuple[Tensor, ...]) -> dist.TorchDistribution:
        """Return the distribution with the head's parameters."""
        return self.family.distribution(*parameters)


def align_answer(code: Tensor, u: Tensor) -> Tensor:
    """Pad the embedded answer ``[..., L', D]`` with zeros in front, to the shape of u ``[..., L, D]``."""
    if u.shape[-2] > code.shape[-2]:  # pad would copy a code of the right length
        code = pad(code, (0, 0, u.shape[-2] - code.shape[-2], 0))
    return code.expand(*u.shape[:-1], code.shape[-1])


def limit_kl(loc: Tensor, scale: Tensor, prior: dist.Normal, max_kl: float) -> tuple[Tensor, Tensor]:
    r"""Move a Gaussian posterior towards the prior until its KL is at most ``max_kl`` (within 2 %).

    The path from the prior to the posterior is linear in the mean and in the log of the scale. Bisection finds the
    share :math:`\lambda` of the path at which the KL meets the limit. If prior and posterior have equal scales, the KL
    at the share :math:`\lambda` is :math:`\lambda^2` times that of the posterior.

    Args:
        loc, scale: mean and sigma of the posterior, ``[..., L, D]``.
        prior: p(eps | u), batch shape ``[..., L, D]``; this function sends no gradient into it.
        max_kl: nats, summed over positions and channels.
    """
    loc_p, scale_p = prior.loc.detach(), prior.scale.detach()
    shift, log_ratio = (loc - loc_p) / scale_p, (scale / scale_p).log()
    with torch.no_grad():
        low, high = (torch.full_like(shift[..., :1, :1], share) for share in (0.0, 1.0))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            exceeds = _kl(middle * shift, middle * log_ratio) > max_kl
            low, high = torch.where(exceeds, low, middle), torch.where(exceeds, middle, high)
    shift, log_ratio = high * shift, high * log_ratio
    # The KL now exceeds the limit only a little. It is nearly quadratic in the share, so that one more step suffices.
    # Unlike the bisection, this step has a gradient.
    share = (max_kl / _kl(shift, log_ratio).clamp(min=max_kl)).sqrt()
    shift, log_ratio = share * shift, share * log_ratio
    return loc_p + shift * scale_p, scale_p * log_ratio.exp()


def _kl(shift: Tensor, log_ratio: Tensor) -> Tensor:
    """Return the KL of a Gaussian from the standard Gaussian, summed over positions and channels, ``[..., 1, 1]``."""
    return (0.5 * (shift.square() + (2 * log_ratio).exp() - 1) - log_ratio).sum((-1, -2), keepdim=True)
