r"""The autoregressive Transformer: :math:`p(y | x) = \prod_i p(y_i | y_{<i}, x)`, one token after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import pad

from pyro_gram.checks import check_choice, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import ANSWER, DRAW_ANSWER
from pyro_gram.networks.core import init_linear_, make_embedding
from pyro_gram.networks.relations import close_improbable, open_values
from pyro_gram.registry import MODELS
from pyro_gram.spec import Structure, TaskSpec

from .direct import OneStepConfig, OneStepModel

Logits = Callable[[Tensor, Tensor], Tensor]


class Autoregressive(dist.TorchDistribution):
    """A distribution over sequences ``[L_out]``. Each token is categorical, given the tokens before it.

    A density takes one pass of the network, a draw one pass for each token.

    Args:
        logits: function from (e_x ``[..., L, D]``, tokens int64 ``[..., n]``) to the logits of these tokens and of
            the next token, ``[..., n + 1, classes]``, for n up to L_out - 1.
        e_x: ``[..., L, D]``.
        length: L_out.
        floor: tokens with a lower probability are not drawn. The density is that of the network in any case.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's own convention)
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, logits: Logits, e_x: Tensor, length: int, floor: float = 0.0, validate_args: bool | None = None
    ) -> None:
        self.logits, self.e_x, self.length, self.floor = logits, e_x, length, floor
        super().__init__(e_x.shape[:-2], torch.Size((length,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Autoregressive:
        e_x = self.e_x.expand(*batch_shape, *self.e_x.shape[-2:])
        return Autoregressive(self.logits, e_x, self.length, self.floor)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        e_x = self.e_x.expand(*sample_shape, *self.e_x.shape)
        tokens = torch.empty(*e_x.shape[:-2], 0, dtype=torch.long, device=e_x.device)
        with torch.no_grad():
            for _ in range(self.length):
                logits = close_improbable(self.logits(e_x, tokens)[..., -1, :], self.floor)
                next_token = dist.Categorical(logits=logits).sample()
                tokens = torch.cat((tokens, next_token[..., None]), dim=-1)
        return tokens

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        value, e_x = value.expand(*shape, self.length), self.e_x.expand(*shape, *self.e_x.shape[-2:])
        log_p = self.logits(e_x, value[..., :-1]).log_softmax(-1)
        return log_p.gather(-1, value[..., None]).squeeze(-1).sum(-1)


@dataclass(frozen=True)
class AutoregressiveConfig(OneStepConfig):
    """Sizes, and which tokens are drawn.

    Attributes:
        floor: tokens with a lower probability than this are not drawn.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, floor=(0.0, 0.5))


@MODELS.register("autoregressive")
class AutoregressiveModel(OneStepModel):
    """A prefix language model.

    Positions of the input attend to each other. A position of the answer attends to all positions before it.

    The position that predicts y_i gets the embeddings of y_{i-1} and of one input token: the token as far from the
    end of the input as y_i is from the end of the answer.

    In place of the mixer ``swiglu``, which mixes all positions, the model has ``attention``.

    With ``mixer = relations`` token y_i belongs to position i of the input. The position that predicts y_i sees what
    position i sees in each relation: positions of the input, and tokens of the answer before y_i.
    """

    Config = AutoregressiveConfig
    config: AutoregressiveConfig
    learns_start = False
    traits = replace(OneStepModel.traits, default_settings={"model": {"layers": 8}})

    def __init__(self, config: AutoregressiveConfig, spec: TaskSpec, prior: nn.Module) -> None:
        if config.mixer == "swiglu":
            config = replace(config, mixer="attention")
        super().__init__(config, spec, prior)
        check_choice("model.mixer of an autoregressive model", config.mixer, ("attention", "relations"))
        if spec.has_value_positions:
            raise ConfigError("an autoregressive model has a position for each token: use another layout of the task")
        prompt = self.length if spec.has_input else 0
        self.f = self.stack(prompt + spec.output_length, prefix=None if self.has_relations else prompt)
        self.answer = make_embedding(spec.output_classes + 1, config.width)  # the last class marks the start of y
        self.decoder = init_linear_(nn.Linear(config.width, spec.output_classes))

    def respond(self, e_x: Tensor, y: Tensor | None, beta: float) -> tuple[Tensor, Tensor]:
        length = e_x.shape[-2] if self.has_relations else self.spec.output_length
        # The distribution keeps the structure of its own input, because the next call of the model brings another one.
        logits = partial(self.logits, structure=self.structure, bias=self.bias)
        likelihood = Autoregressive(logits, e_x, length, self.config.floor)
        return e_x, pyro.sample(ANSWER, likelihood, obs=y, infer={DRAW_ANSWER: True})

    def logits(
        self, e_x: Tensor, tokens: Tensor, structure: Structure | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Return the logits of ``tokens`` and of the token after them, ``[..., n + 1, classes]``."""
        start, prompt = self.spec.output_classes, e_x.shape[-2] if self.spec.has_input else 0
        tokens = pad(tokens, (1, 0), value=start)
        s = self.answer(tokens) * self.config.width**0.5
        if prompt:
            s = s + self._input_at_answer(e_x)[..., : s.shape[-2], :]
            s = torch.cat((e_x, s), dim=-2)
        logits = self.decoder(self.f(s, _bias_with_answer(bias, tokens.shape[-1]))[..., prompt:, :])
        return open_values(logits, structure)

    def _input_at_answer(self, e_x: Tensor) -> Tensor:
        """Return the last L_out positions of the embedded input; a shorter input gets zeros in front."""
        if self.has_relations:
            return e_x
        num_missing = max(0, self.spec.output_length - e_x.shape[-2])
        return pad(e_x, (0, 0, num_missing, 0))[..., -self.spec.output_length :, :]


def _bias_with_answer(bias: Tensor | None, count: int) -> Tensor | None:
    """Return the bias on attention scores for the input and ``count`` positions of the answer, or None.

    The input sees itself only. Position i of the answer holds y_{i-1}; it sees y_{j-1} if i = j, or if j < i and
    position i of the input sees position j - 1.
    """
    if bias is None:
        return None
    visible = bias[..., :count, :]
    earlier = torch.ones(count, count, dtype=torch.bool, device=visible.device).tril()
    tokens = pad(visible[..., : count - 1], (1, 0), value=0.0).masked_fill(~earlier, -torch.inf)
    is_self = torch.eye(count, dtype=torch.bool, device=visible.device)
    answer = torch.cat((visible, tokens.masked_fill(is_self, 0.0)), dim=-1)
    return torch.cat((pad(bias, (0, count), value=-torch.inf), answer), dim=-2)
