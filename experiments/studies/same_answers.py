"""Check that the committed checkpoints still give the same answers under the same seed.

``python experiments/studies/same_answers.py`` compares the answers with ``same_answers.json``. With ``--record`` it
writes that file instead: record before a change of the code, and compare after it. Tokens repeat bit for bit only on
the same kind of machine, so a comparison with a record from another kind means nothing.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch

import pyro_gram
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import read_json, write_json
from pyro_gram.system.machine import environment

RECORD = Path(__file__).with_suffix(".json")
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
INPUTS, SAMPLES, SEED = 8, 10, 7
# Arguments of Solver.sample, by name of the setting.
SETTINGS: dict[str, dict[str, Any]] = {
    "as measured": {},
    "untempered": {"temper": pyro_gram.TemperConfig()},
    "sobol": {"draws": "sobol"},
    "antithetic": {"draws": "antithetic"},
}
WITH_HEADS: dict[str, dict[str, Any]] = {"halting": {"halt": 0.9}, "smc": {"draws": "smc"}}


def digest(*tensors: torch.Tensor) -> str:
    """Return the SHA-256 of the bytes of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def answers_of(solver: Solver) -> dict[str, str]:
    """Sample the first test inputs in each setting. Return for each setting the digest of the tokens and steps."""
    x = solver.task.split("test").first_versions.inputs
    x = None if x is None else x[:INPUTS]
    answers = {}
    for name, settings in (SETTINGS | (WITH_HEADS if solver.has_heads else {})).items():
        rollout = solver.sample(x, SAMPLES, seed=SEED, **settings)
        answers[name] = digest(rollout.tokens, rollout.steps)
    if x is not None:
        answer_list = solver.solve(x, SAMPLES, seed=SEED, select="value" if solver.has_heads else "vote")
        answers["solved"] = digest(torch.cat([one.solutions[0].y for one in answer_list]))
    return answers


def main(argv: list[str]) -> int:
    parser = Parser("same_answers.py", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the answers to the file instead of comparing them")
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the MNIST files")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # with one thread sums of floats repeat
    answers = {}
    for path in sorted(CHECKPOINTS.glob("*.safetensors")):
        print(path.stem, file=sys.stderr)
        answers[path.stem] = answers_of(pyro_gram.load(path, arguments.data_dir))
    if arguments.record:
        write_json(RECORD, {"answers": answers, "environment": environment()})
        return 0
    recorded_answers = read_json(RECORD)["answers"]
    differing_settings = [
        f"{name}: {setting}"
        for name, settings in recorded_answers.items()
        for setting, value in settings.items()
        if answers.get(name, {}).get(setting) != value
    ]
    print("\n".join(differing_settings) or f"{len(recorded_answers)} checkpoints give the recorded answers")
    return 1 if differing_settings else 0


if __name__ == "__main__":
    raise SystemExit(call(main))
