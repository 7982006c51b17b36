"""Two small tasks whose inputs have several sizes and relations, and helpers that run models on them."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_gram.inference.sites import transition_index
from pyro_gram.registry import GUIDES, MODELS, PRIORS
from pyro_gram.spec import Structure, TaskSpec
from tests.conftest import perturb_

GRAPH_PADDING, BOARD_PADDING = 5, 6
SIZES = {"graphs": (3, 6, 4, 5), "boards": (3, 5, 4, 2)}  # the largest input of each task is among them


def graph_structure(x: Tensor) -> Structure:
    """Return the structure of graphs ``[..., n, n]``: neighbours, the other vertices, all vertices.

    The token on the diagonal, less 1, is the number of values that a vertex may take.
    """
    tokens = x.diagonal(dim1=-2, dim2=-1)
    mask = tokens != GRAPH_PADDING
    pairs = mask[..., :, None] & mask[..., None, :]
    is_edge, is_self = x == 1, torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
    is_edge = is_edge & ~is_self
    relations = torch.stack((is_edge, pairs & ~is_edge, pairs), dim=-3) | is_self
    count = torch.where(mask, tokens - 1, 1)
    return Structure(tokens, relations, mask, torch.arange(3, device=x.device) < count[..., None])


def board_structure(x: Tensor) -> Structure:
    """Return the structure of boards ``[..., n]``, whose positions are pairs (row, value): rows, columns, all.

    A token is 0 for an empty row; otherwise it is 1 plus the value that is set in this row.
    """
    n = x.shape[-1]
    rows = x != BOARD_PADDING
    board = rows[..., :, None] & rows[..., None, :]
    column = torch.arange(n, device=x.device)
    is_set = x[..., None] == column + 1
    values = board & ((x == 0)[..., None] | is_set) | ((~rows)[..., None] & (column == 0))
    mask = board.flatten(-2)
    i, v = torch.arange(n * n, device=x.device) // n, torch.arange(n * n, device=x.device) % n
    kinds = torch.stack((i == i[:, None], v == v[:, None], torch.ones_like(i == i[:, None])))
    pairs = (mask[..., :, None] & mask[..., None, :])[..., None, :, :]
    relations = kinds & pairs | torch.eye(n * n, dtype=torch.bool, device=x.device)
    return Structure((board & is_set).long().flatten(-2), relations, mask, values)


SPECS = {
    "graphs": TaskSpec(6, 6, 6, 6, 3, structure=graph_structure, relations=3, padding=GRAPH_PADDING),
    "boards": TaskSpec(
        5, None, 7, 5, 5, structure=board_structure, relations=3, padding=BOARD_PADDING, has_value_positions=True
    ),
}


def make_pairs(task: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return one padded pair (x, y) for each of the task's ``SIZES``. Each y has open values only."""
    generator = torch.Generator().manual_seed(seed)
    spec = SPECS[task]
    x = torch.full((len(SIZES[task]), *spec.input_shape), GRAPH_PADDING if task == "graphs" else BOARD_PADDING)
    for row, n in zip(x, SIZES[task], strict=True):
        if task == "graphs":
            edges = torch.randint(0, 2, (n, n), generator=generator).triu(1)
            row[:n, :n] = edges + edges.T + torch.diag(torch.randint(2, 5, (n,), generator=generator))
        else:
            row[:n] = 0
            row[0] = torch.randint(1, n + 1, (), generator=generator)
    assert spec.structure is not None
    values = spec.structure(x).values
    assert values is not None
    y = torch.multinomial(values.double().flatten(0, 1), 1, generator=generator).view(len(x), -1)
    return x, y


def positions_of(task: str, x: Tensor) -> Tensor:
    """Return the positions of one padded input that are not padding, int64 ``[L']``."""
    structure_of = SPECS[task].structure
    assert structure_of is not None
    mask = structure_of(x).mask
    assert mask is not None
    return mask.nonzero().flatten()


def permute_input(task: str, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Permute the tokens of inputs by ``order`` (int64 ``[n]``); return them, and the order of positions."""
    if task == "graphs":
        return x[..., order, :][..., order], order
    n = len(order)
    return x[..., order], (order[:, None] * n + torch.arange(n)).flatten()


SIZES_OF_PARTS: dict[str, dict[str, int]] = {
    "model": {"width": 12, "heads": 3, "hidden": 10, "layers": 1, "low_steps": 2, "transitions": 2},
    "prior": {"hidden": 8, "groups": 3, "classes": 4},
    "guide": {"hidden": 8, "heads": 3},
}


def make_config(part: str, cls: Any, **changes: Any) -> Any:
    """Make the small config of a model, prior or guide."""
    names = cls.__dataclass_fields__
    return cls(**{**{k: v for k, v in SIZES_OF_PARTS[part].items() if k in names}, **changes})


def make_program(
    spec: TaskSpec, model: str = "gram", prior: str = "gaussian", guide: str = "amortized", **changes: dict[str, Any]
) -> tuple[Any, Any]:
    """Make a small model whose mixer is ``relations``, and its guide. All parameters are perturbed.

    ``changes`` are fields of the configs: ``model_config={"layers": 2}``.
    """
    model_class, prior_class, guide_class = MODELS.get(model), PRIORS.get(prior), GUIDES.get(guide)
    model_config = make_config("model", model_class.Config, **{"mixer": "relations", **changes.get("model_config", {})})
    prior_config = make_config("prior", prior_class.Config, **changes.get("prior_config", {}))
    program = model_class(model_config, spec, prior_class(prior_config, model_config.width))
    guide_config = make_config("guide", guide_class.Config, **changes.get("guide_config", {}))
    inference = guide_class(guide_config, spec, program, model_config.width)
    return perturb_(program, 0.3), perturb_(inference, 0.3)


class FixedGuidance(Messenger):
    """Set the guidance of each transition to ``eps[t]``, ``[B, L, *]``; it stays a latent of model and guide."""

    def __init__(self, eps: Tensor) -> None:
        super().__init__()
        self.eps = eps

    def _pyro_sample(self, msg: Any) -> None:
        t = transition_index(msg["name"])
        if t is not None and not msg["is_observed"] and msg["value"] is None:  # a replayed draw is already set
            shape = msg["fn"].batch_shape + msg["fn"].event_shape
            msg["value"] = self.eps[t].expand(shape)


def make_guidance(model: nn.Module, count: int, length: int, transitions: int = 8) -> Tensor:
    """Draw guidance that fits the model's prior, ``[transitions, count, length, *]``, the same at each call."""
    generator = torch.Generator().manual_seed(3)
    prior: Any = model.prior
    if not hasattr(prior, "codes"):
        config: Any = model.config
        return 0.2 * torch.randn(transitions, count, length, config.width, generator=generator)
    shape = (transitions, count, length, prior.codes.groups)
    codes = torch.randint(prior.codes.classes, shape, generator=generator)
    return one_hot(codes, prior.codes.classes).flatten(-2).to(torch.get_default_dtype())


def fix_draws(monkeypatch: Any, length: int, by_position: bool = True) -> None:
    """Replace the random draws of tokens: each position always gets the same uniform number.

    With ``by_position=False`` all positions get one number, for draws of one token at a time.
    """
    numbers = torch.rand(2, length, generator=torch.Generator().manual_seed(5))
    numbers[0, :3] = torch.tensor([0.05, 0.3, 0.3])  # MDLM reveals these tokens in its first steps
    if not by_position:
        numbers = numbers[:, :1].expand_as(numbers)

    def rand(size: torch.Size, **_: Any) -> Tensor:
        return numbers[0, : size[-1]].expand(size)

    def sample(self: Any, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size((*sample_shape, *self.batch_shape))
        number = numbers[1, : shape[-1]].expand(shape) if by_position else numbers[1, 0].expand(shape)
        return (self.probs.cumsum(-1) < number[..., None]).sum(-1)

    monkeypatch.setattr(torch, "rand", rand)
    monkeypatch.setattr(torch.distributions.Categorical, "sample", sample)
