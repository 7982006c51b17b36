"""Start a small run from the command line (it takes a second), and read the files that it writes."""

import json

import experiments.run
from pyro_gram.system.cli import call

SMALL = [
    *("--task", "coloring", "--preset", "tiny"),
    *("--task.vertices", "4", "--task.train", "20", "--task.validation", "4", "--task.test", "4"),
    *("--model.width", "16", "--model.hidden", "16", "--prior.hidden", "16", "--guide.hidden", "16"),
    *("--optim.warmup", "1", "--train.batch", "8", "--train.supervision_steps", "2", "--evaluate.num_samples", "5"),
]


def cli(main, *options):
    """Run a script in this process and return its exit code."""
    try:
        return call(main, [str(w) for w in options])
    except SystemExit as e:
        return e.code


def run(out, *options):
    return cli(experiments.run.main, *SMALL, "--out", out, *options)


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def results(out):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((out / "results.json").read_text(), parse_constant=refuse)
