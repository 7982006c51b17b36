"""Measure how many unseen boards of N-Queens are solved by a lookup in the training answers, for each split.

The lookup stores the answers of training inputs. (For the figures ``images`` it also stores their rotations and
reflections.) For an input it picks at random one of the stored answers that contain the input's queens. If no stored
answer contains them, the lookup is wrong. No network is trained. On the paper's split by input the lookup solves every
input. A high accuracy on that split therefore does not show that a model finds new placements.

    python experiments/studies/lookup.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_gram.diagnostics.metrics import coverage_limit
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import check_writable, write_json
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.held_out import InputSet
from pyro_gram.tasks.nqueens.boards import images
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig

HERE = Path(__file__).parent
SIZES = (8, 10)
SPLITS_BY = ("input", "orbit")
NUM_SAMPLES = 20


def count_matches(inputs: Tensor, answers: Tensor) -> Tensor:
    """Count, for each input, the answers that contain its queens.

    Args:
        inputs: for each row of the board, 1 + the column of its queen, or 0 if it has none, int64 ``[B, n]``.
        answers: M different answers; for each row the column of its queen, int64 ``[M, n]``.

    Returns:
        int64 ``[B]``.
    """
    return torch.stack([((x == 0) | (x == answers + 1)).all(-1).sum() for x in inputs])


def lookup_metrics(test: PuzzleSet, answers: Tensor) -> dict[str, float]:
    """Return the expected metrics of ``NUM_SAMPLES`` uniform draws among the matching answers.

    Args:
        test: test inputs and their solutions, in the ``row`` layout.
        answers: distinct complete boards, int64 ``[M, n]``. A board solves every input whose queens it contains.
    """
    assert test.inputs is not None
    count, m = count_matches(test.inputs, answers).double(), test.num_solutions.double()
    clamped_count = count.clamp(min=1)
    return {
        "answers": len(answers),
        "sample_accuracy": (count > 0).double().mean().item(),
        "coverage": (count / m * coverage_limit(clamped_count, NUM_SAMPLES)).mean().item(),
        "coverage_all": (count / m).mean().item(),
    }


def measure_split(size: int, split_by: str) -> dict[str, Any]:
    """Measure the lookup on one split, without and with images (rotations and reflections) of the stored answers.

    Also count the test inputs of which an image is a training input.
    """
    task = NQueens(NQueensConfig(size=size, split_by=split_by))
    train, test = task.split("train"), task.split("test")
    assert train.inputs is not None
    assert test.inputs is not None
    answers = train.solutions.unique(dim=0)
    train_inputs = InputSet(train.inputs, task.spec.input_vocabulary)
    has_image = train_inputs.contains(images(test.inputs - 1) + 1).any(-1)
    return {
        "train": len(train),
        "test": len(test),
        "symmetric_copies": int(has_image.sum()),
        "coverage_limit": coverage_limit(test.num_solutions, NUM_SAMPLES).mean().item(),
        "plain": lookup_metrics(test, answers),
        "images": lookup_metrics(test, images(answers).flatten(0, 1).unique(dim=0)),
    }


def main(argv: list[str]) -> int:
    parser = Parser("lookup.py", description=__doc__)
    parser.add_argument(
        "--sizes", nargs="+", type=int, metavar="N", default=SIZES, help="sizes of the board (default 8 10)"
    )
    parser.add_argument("--out", type=Path, default=HERE / "lookup.json", metavar="FILE")
    arguments = parser.parse_args(argv)
    check_writable(arguments.out)
    problems = {f"nqueens{n}": {by: measure_split(n, by) for by in SPLITS_BY} for n in arguments.sizes}
    write_json(arguments.out, {"num_samples": NUM_SAMPLES, "problems": problems})
    for problem, splits in problems.items():
        for by, split in splits.items():
            print(
                f"{problem}, split by {by}: {split['symmetric_copies']} of {split['test']} unseen inputs have an image "
                f"in training; lookup {split['plain']['sample_accuracy']:.3f}, with images "
                f"{split['images']['sample_accuracy']:.3f}"
            )
    print(f"results: {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
