"""A task: half of a permutation is given, and the other half must be found."""

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor, nn

from pyro_gram.spec import TaskSpec
from pyro_gram.tasks.base import PuzzleSet, Task


@dataclass(frozen=True)
class CompletionConfig:
    size: int = 4
    train: int = 12
    validation: int = 4
    test: int = 4


class Completion(Task):
    Config = CompletionConfig
    violation_name = "repeated number"

    def __init__(self, config: CompletionConfig, data_dir: str | None = None) -> None:
        n = self.n = config.size
        self.config = config
        self.spec = TaskSpec(n, None, n + 1, n, n)  # inputs: 0 is blank, k + 1 is the number k

    def split(self, name: str) -> PuzzleSet:
        answers = torch.tensor(list(permutations(range(self.n))))
        sizes = {s: getattr(self.config, s) for s in ("train", "validation", "test")}
        start = dict(zip(sizes, (0, sizes["train"], sizes["train"] + sizes["validation"]), strict=True))[name]
        inputs = (answers + 1)[start : start + sizes[name]].clone()
        inputs[:, self.n // 2 :] = 0  # half is blank
        inputs = inputs.unique(dim=0)
        fits = ((inputs[:, None] == answers + 1) | (inputs[:, None] == 0)).all(-1)  # [inputs, permutations]
        return PuzzleSet.from_counts(inputs, answers[fits.nonzero()[:, 1]], num_solutions=fits.sum(1))

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        assert x is not None  # it is None in tasks without input
        num_clashes = ((x > 0) & (x - 1 != y)).sum(-1)
        num_repeated = self.n - nn.functional.one_hot(y, self.n).amax(-2).sum(-1)
        return num_clashes + num_repeated

    def parse(self, text: str) -> Tensor:
        return torch.tensor([0 if c == "." else int(c) + 1 for c in text])

    def format_input(self, x: Tensor | None) -> str:
        assert x is not None
        return "".join("." if v == 0 else str(v - 1) for v in x.tolist())
