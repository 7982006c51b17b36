"""Everything that is diagnosed of one checkpoint. ``experiments/diagnose.py`` is its command line.

Samples are of fresh trajectories of the prior on unseen inputs, tempered as the run was measured. All that has to do
with the guide, its bounds, weights and ranks, is of the prior as it is, and nothing of it counts as accuracy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pyro_gram.inference.contract import model_sizes, model_traits
from pyro_gram.diagnostics import verdicts
from pyro_gram.diagnostics.plots import run as figures
from pyro_gram.diagnostics import landscape as landscapes
from pyro_gram.diagnostics.calibration import uniformity
from pyro_gram.diagnostics.plots.calibration import sbc_figure, uniformity_figure
from pyro_gram.diagnostics.collect import collect
from pyro_gram.diagnostics.evidence import NEITHER, evidence, to_dict
from pyro_gram.diagnostics.plots.run import HANDFUL, counted
from pyro_gram.diagnostics.inference_data import save
from pyro_gram.diagnostics.landscape import landscape
from pyro_gram.diagnostics.metrics import excess, measure, solution_ids
from pyro_gram.diagnostics.plots.posterior import evidence_figure, leak_figure, terms_figure
from pyro_gram.diagnostics.report import Report, result_rows, write_report
from pyro_gram.diagnostics.sbc import simulate
from pyro_gram.diagnostics.sbc import to_dict as ranks_to_dict
from pyro_gram.diagnostics.trajectories import attractors, deciding, parting, walk
from pyro_gram.diagnostics.plots.trajectories import animate, attractors_figure, deciding_figure, landscape_figure
from pyro_gram.runs.evaluate import assess, bound_metrics, bounds_of, looks_of
from pyro_gram.runs.evaluate import check_ready as check_task
from pyro_gram.system.files import write_json
from pyro_gram.inference.importance import MAX_TRACED
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.system.machine import environment
from pyro_gram.solver import Solver
from pyro_gram.runs.study import Study

SAMPLES, SAMPLES_OF_DATA, LEAST_OF_DATA = 20, 2000, 256  # an input; of p(x)
BOUND_PAIRS = 128
SEEN, SEEN_SAMPLES = 128, 4  # training inputs that the prior is tried on, and samples of each
GUIDE_SAMPLES, PRIOR_SAMPLES = 160, 320  # draws a pair for log p(y | x)
DATA_SAMPLES = 4096  # of the prior of p(x): all data share them
RANK_ROUNDS, RANK_DRAWS = 2, 31  # simulated data of an input, and the guide's trajectories for each
CHAINS, DRAWS = 4, 12  # of inference.nc
# Supervision steps of coloring8's trajectories, some .25 ms each on two cores: each part takes as many inputs as fit.
SAMPLED, WEIGHED, COLLECTED, RANKED, FOLLOWED, FORKED = 50_000, 42_000, 20_000, 35_000, 15_000, 20_000
TRIED, LEAST_SEEN = 8_000, 16  # on training inputs
ENDS, PROJECTED = 24, 64  # trajectories of an input: whose ends are compared; in the landscape
PLACES = 8  # positions whose part in the answer is tried, and numbers of transitions


def samples(study: Study) -> None:
    """Accuracy, coverage and evenness of the prior's samples, and what is right where the guide steers."""
    task, solver, seed = study.solver.task, study.solver, study.settings.seed
    puzzles = study.test.subset(study.at_most(SAMPLED, SAMPLES, least=8))
    count = SAMPLES if puzzles.inputs is not None else min(SAMPLES_OF_DATA, max(LEAST_OF_DATA, study.fit(SAMPLED)))
    rolled = solver.sample(puzzles.inputs, count, study.settings.depth, seed, halt=study.halt)
    metrics: dict[str, Any] = measure(task, puzzles, rolled.tokens, rolled.score).to_dict()
    uneven: dict[str, Any] = {}
    if puzzles.inputs is None:
        study.draw("samples", figures.samples(task, rolled.tokens[:, 0]))
    else:
        study.draw("solved", figures.solved(task, puzzles, rolled.tokens))
    if task.split("test").is_first_version is None:  # else what a task says is of all versions of an input
        metrics |= assess(task, puzzles, rolled.tokens, split="test")
    if puzzles.has_all_solutions and int(puzzles.num_solutions.max()) > 1:
        even = uniformity(solution_ids(task, puzzles, rolled.tokens), puzzles.num_solutions, seed=seed)
        uneven = even.summary()
        study.draw("evenness", uniformity_figure(even))
    metrics |= _steered(study, len(puzzles)) | {"depth": study.settings.depth}
    looks = looks_of(study.rows)
    judged = verdicts.of_metrics(metrics, looks, uneven, _seen(study))
    study.found(*judged, metrics=metrics, looks=looks, uniformity=uneven)


def _steered(study: Study, inputs: int) -> dict[str, Any]:
    """The bounds (Eq. 13, 14) and the terms of the full one, and right answers with y in sight, on the same inputs."""
    if study.guide is None:
        return {}
    solver, s = study.solver, study.settings
    count = inputs if solver.task.spec.has_input else min(BOUND_PAIRS, s.inputs)
    puzzles, x, y = study.pairs(count)
    held = Solver(solver.config, solver.task, solver.model, solver.guide)
    found = bounds_of(held, x, y, s.depth, s.seed)
    short = {"excess": excess(found.full, puzzles.num_solutions).mean().item()} if puzzles.has_all_solutions else {}
    return short | bound_metrics(held, puzzles.inputs, found)


def _seen(study: Study) -> float | None:
    """Right samples of the prior on training inputs: apart from a leak, it may not have generalised."""
    task = study.solver.task
    if not task.is_checkable or not task.spec.has_input:
        return None
    x = task.split("train").subset(min(SEEN, max(LEAST_SEEN, study.fit(TRIED) // SEEN_SAMPLES))).inputs
    rolled = study.solver.sample(x, SEEN_SAMPLES, study.settings.depth, study.settings.seed, halt=study.halt)
    return task.is_valid(x, rolled.tokens).double().mean().item()


def training(study: Study) -> None:
    """What training did, where the run's log is at hand."""
    if not study.rows:
        study.skip("training", "there is no metrics.jsonl beside this checkpoint; a run's directory holds it")
        return
    study.draw("training", figures.training(study.rows))
    if any("posterior_accuracy" in row for row in study.rows):
        study.draw("leak", leak_figure(study.rows))


def groups(study: Study) -> None:
    """inference.nc, and the terms of the bound by transition."""
    solver, s = study.solver, study.settings
    count = study.at_most(COLLECTED, 2 * CHAINS * DRAWS, most=32)
    data = collect(
        solver.task,
        solver.model,
        solver.guide,
        study.test,
        depth=s.depth,
        inputs=count,
        chains=CHAINS,
        draws=DRAWS,
        seed=s.seed,
    )
    save(data, study.out / "inference.nc")
    if "guidance" in data["prior"]:
        study.draw(
            "terms_prior" if study.guide is None else "terms",
            terms_figure(data, model_sizes(solver.config.model).transitions),
        )
    else:
        study.skip("terms", "this model has no guidance")


def weights(study: Study) -> None:
    """log p(y | x) from both ends."""
    solver, s = study.solver, study.settings
    if not model_traits(solver.model).has_exact_likelihood:
        study.skip("evidence", "log p(y|x) of a diffusion model is no matter of trajectories of guidance")
        return
    puzzles, x, y = study.pairs(study.at_most(WEIGHED, GUIDE_SAMPLES, most=24), several=True)
    draws = PRIOR_SAMPLES if x is not None else min(DATA_SAMPLES, max(LEAST_OF_DATA, study.fit(2 * WEIGHED)))
    found = evidence(
        solver.model,
        study.guide,
        x,
        y,
        depth=s.depth,
        guide_samples=GUIDE_SAMPLES,
        prior_samples=draws,
        seed=s.seed,
        max_traced=chunk_size(study.positions, MAX_TRACED),
        max_trajectories=chunk_size(study.positions),
    )
    summary = found.summary()
    judged = [verdicts.estimate(summary)]
    if found.guide is not None:
        judged += [verdicts.weights(summary), verdicts.agreement(summary)]
    numbers = to_dict(found)
    if puzzles.has_all_solutions:
        log_ms = puzzles.num_solutions.double().log()
        log_m, difference = log_ms.mean().item(), found.log_p + log_ms
        error = None if x is None else difference.std(correction=0).item() / len(difference) ** 0.5
        neither = summary["believed"][NEITHER] / summary["pairs"]
        judged.append(verdicts.likely(summary["log_p"], error, log_m, neither))
        numbers["summary"]["log_p_perfect"] = -log_m
    study.found(*judged, evidence=numbers)
    study.draw("evidence_prior" if found.guide is None else "evidence", evidence_figure(found))


def ranks(study: Study) -> None:
    """Simulation-based calibration: is the guide the posterior of the program's own data?"""
    solver, s = study.solver, study.settings
    if study.guide is None:
        study.skip("ranks", study.why_no_guide)
        return
    count = study.at_most(RANKED, RANK_DRAWS * RANK_ROUNDS, most=64)
    _, x, _ = study.pairs(count)
    found = simulate(
        solver.model,
        study.guide,
        x,
        depth=s.depth,
        rounds=RANK_ROUNDS if x is not None else count * RANK_ROUNDS,
        draws=RANK_DRAWS,
        seed=s.seed,
        max_traced=chunk_size(study.positions, MAX_TRACED),
    )
    deviations = {name: of["deviation"] for name, of in found.summary().items()}
    judged = verdicts.ranks(deviations, found.band, data=found.ranks.shape[1])
    study.found(judged, ranks=ranks_to_dict(found))
    study.draw("ranks", sbc_figure(found))


def trajectories(study: Study) -> None:
    """Where trajectories end, when they part, and which draws decide."""
    s, task = study.settings, study.solver.task
    held = max(1, chunk_size(study.positions) // ENDS)  # their states are all held
    puzzles = study.test.subset(study.at_most(FOLLOWED, ENDS, least=2, most=min(24, held)))
    x = study.on_device(puzzles.inputs)
    walked = walk(study.solver.model, x, depth=s.depth, num_samples=ENDS, seed=s.seed, temper=study.temper)
    ends = attractors(task, x, walked.tokens)
    parted = parting(task, x, walked)
    several = puzzles.num_solutions > 1  # of an incomplete list too
    alike = (ends.distinct_right[several] <= 1).double()
    found = [verdicts.diverse(alike.mean().item() if len(alike) else 0.0, len(alike))]
    if ends.unsettled_fraction is not None:
        found.append(verdicts.settled(ends.unsettled_fraction))
    study.found(
        *found,
        trajectories={
            "inputs": len(puzzles),
            "num_samples": ENDS,
            "distinct": ends.distinct.double().mean().item(),
            "effective": ends.effective.mean().item(),
            "steps_to_settle": ends.settling.double().mean().item(),
            "differ_by_step": parted.differ.tolist(),
        },
    )
    known = puzzles.num_solutions if puzzles.has_all_solutions else None
    study.draw("attractors", attractors_figure(ends, parted, known))
    _decisions(study)
    _one_input(study)


def _decisions(study: Study) -> None:
    s = study.settings
    held = max(1, chunk_size(study.positions) // (ENDS // 2))  # their guidance is all held
    count = study.at_most(FORKED, ENDS // 2 * 2 * PLACES, least=1, most=min(8, held))
    x = None if study.test.inputs is None else study.on_device(study.several(count).inputs)
    found = deciding(
        study.solver.model,
        study.solver.task,
        x,
        depth=s.depth,
        num_samples=ENDS // 2,
        places=PLACES,
        seed=s.seed,
        temper=study.temper,
    )
    if found is None:
        study.skip("deciding", "this model has no guidance")
        return
    study.found(deciding={"kept": found.kept.tolist(), "same": found.by_transition.mean(1).tolist()})
    study.draw("deciding", deciding_figure(found))


def _one_input(study: Study) -> None:
    """The landscape and the forming answers of the input whose number of solutions is nearest to a handful."""
    s, task, model = study.settings, study.solver.task, study.solver.model
    place = int((study.test.num_solutions - HANDFUL).abs().argmin())
    x = None if study.test.inputs is None else study.on_device(study.test.inputs[place : place + 1])
    solutions = study.test.solutions_of(place) if study.test.has_all_solutions else None
    count = min(PROJECTED, chunk_size(study.positions))
    seen = landscape(model, task, x, solutions, depth=s.depth, num_samples=count, seed=s.seed, temper=study.temper)
    if seen is None:
        study.skip("landscape", "every trajectory of this model is the same")
    else:
        study.draw("landscape", landscape_figure(seen))
    history = walk(model, x, depth=s.depth, num_samples=3, seed=s.seed, temper=study.temper).tokens[:, :, 0]
    one = None if x is None else x[0].cpu()
    study.draw("formation", figures.formation(task, one, history))
    path = study.out / "figures" / "formation.gif"
    animate(task, one, history, path)
    study.draw("animation", path)


PARTS: dict[str, Callable[[Study], None]] = {
    "samples": samples,
    "training": training,
    "inference.nc": groups,
    "log p(y|x)": weights,
    "ranks under the guide": ranks,
    "trajectories": trajectories,
}


def check_ready(solver: Solver) -> None:
    """Everything that a diagnosis will need, before it begins.

    Raises:
        ConfigError: data or a package is missing.
        InputError: a file of the task is damaged.
    """
    check_task(solver.task)
    landscapes.check_installed()


def diagnose(study: Study, name: str, progress: Any) -> None:
    """Every part, then ``report.html`` and ``diagnosis.json``.

    Args:
        name: of the checkpoint.
        progress: a tqdm bar, which is told each part's name.
    """
    start = time.perf_counter()
    seconds = {}
    progress.reset(total=len(PARTS))
    for title, part in PARTS.items():
        progress.set_postfix_str(title)
        begun = time.perf_counter()
        part(study)
        seconds[title] = time.perf_counter() - begun
        progress.update()
    progress.set_postfix_str("")
    config, task = study.solver.config, study.solver.task
    summary = {
        "checkpoint": name,
        "task": config.names["task"],
        "depth": study.settings.depth,
        "seed": study.settings.seed,
        "seconds": {**seconds, "total": time.perf_counter() - start},
        "verdicts": [v.to_dict() for v in study.verdicts.values()],
        **study.numbers,
        "environment": environment(),
    }
    write_json(study.out / "diagnosis.json", summary)
    report = Report(
        title=f"{name}: {config.names['task']}, {config.names['model']}",
        lead=lead(study),
        verdicts=list(study.verdicts.values()),
        rows=result_rows(
            study.numbers["metrics"],
            task.paper_name,
            config.names["model"],
            whole=study.numbers["metrics"]["num_inputs"] == len(study.test),
        ),
        sections=study.sections(),
        details={"Settings": config.to_dict(), "diagnosis.json": summary},
    )
    write_report(study.out / "report.html", report)


def lead(study: Study) -> str:
    """What was examined, in two sentences."""
    m, config = study.numbers["metrics"], study.solver.config
    count = sum(p.numel() for p in study.solver.model.parameters())
    conditional = study.test.inputs is not None
    what = f"on {m['num_inputs']:,} inputs that training never saw" if conditional else "without input"
    temper = config.temper.describe()
    steps = counted(study.settings.depth, "supervision step")
    guide = "; the guide, its bounds, weights and ranks are examined on a few of them, of the prior as it is"
    return (
        f"Preset {config.preset}, seed {config.seed}, {count:,} parameters with the heads. "
        "Samples are fresh trajectories of the prior"
        f"{f' ({temper})' if temper else ''} {what}, {m['num_samples']:,} each, {steps} "
        f"deep{guide if study.guide is not None else ''}."
    )
