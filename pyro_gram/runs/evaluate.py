"""The evaluation at the end of a run: the heads are trained, the model is measured, and the results are written."""

from __future__ import annotations

import time
from typing import Any

from pyro_gram.checkpoint import save_model
from pyro_gram.diagnostics import verdicts
from pyro_gram.diagnostics.metrics import solution_ids
from pyro_gram.diagnostics.plots.run import coverage_figure
from pyro_gram.diagnostics.report import summarize_run
from pyro_gram.inference.sites import HEADS_ATTRIBUTE
from pyro_gram.runs.findings import Findings, draw_formation, draw_samples, draw_training, save_trajectories
from pyro_gram.runs.measure import count_trajectories, validation_history
from pyro_gram.runs.run import Run
from pyro_gram.runs.scores import Measurement, measure_test
from pyro_gram.solver import Solver
from pyro_gram.system.files import write_json
from pyro_gram.system.machine import environment, peak_memory_mb
from pyro_gram.system.progress import Phases
from pyro_gram.training.config import will_have_heads
from pyro_gram.training.heads import train_heads

SAVED_INPUTS, SAVED_CHAINS, SAVED_DRAWS = (
    32,
    4,
    25,
)  # sizes of inference.nc; tasks with over 16 positions get fewer draws


def evaluate(run: Run, half: bool = False) -> dict[str, Any]:
    """Train the heads, measure on the test split, and write weights, results, figures, inference.nc and report.

    Several processes share the trajectories. The main process writes the files.

    Args:
        run: a run whose training is over.
        half: write the weights as bfloat16.

    Returns:
        the contents of ``results.json``.
    """
    start = time.perf_counter()
    solver, processes = run.averaged_solver, run.processes
    solver.model.eval()
    solver.guide.eval()
    has_heads = will_have_heads(solver.model, solver.config.heads)
    if has_heads:
        _train_heads(solver, run.phases)
        heads = solver.model.get_submodule(HEADS_ATTRIBUTE)
        processes.broadcast_(list(heads.state_dict().values()))  # every process must use the heads that are saved
    head_seconds = time.perf_counter() - start
    if processes.is_main:
        save_model(run.out / "model.safetensors", solver, half=half)
    with run.phases.start("evaluation", count_trajectories(solver, has_heads), "trajectory"):
        measurement = measure_test(solver, processes, run.phases.update)
    run.phases.print("drawing figures and writing the report")
    findings = Findings(run.out)
    if processes.is_main:
        _draw(run, solver, measurement, findings)
    evaluate_seconds = time.perf_counter() - start - head_seconds
    results = _results(run, solver, measurement, head_seconds, evaluate_seconds)
    if processes.is_main:
        write_json(run.out / "results.json", results)
        _write_report(solver, results, findings)
    processes.barrier()
    return results


def _train_heads(solver: Solver, phases: Phases) -> None:
    """Train the heads of a trained model, with a progress bar on stderr."""
    config, rounds = solver.config, solver.config.heads.rounds
    start = time.perf_counter()
    with phases.start("heads", rounds, "round") as bar:

        def show(number: int, loss: float) -> None:
            remaining_seconds = (time.perf_counter() - start) / (number + 1) * (rounds - number - 1)
            bar.set_postfix_str(f"{phases.remaining_text('heads', remaining_seconds)}loss {loss:.3f}", refresh=False)
            bar.update()

        train_heads(solver.model, config.model, solver.task, config.heads, **config.head_settings, progress=show)


def _draw(run: Run, solver: Solver, measurement: Measurement, findings: Findings) -> None:
    puzzles, task, config = measurement.puzzles, solver.task, solver.config
    draw_training(run.rows(), findings)
    draw_samples(solver, puzzles, measurement.rollout, findings)
    if measurement.uniformity and puzzles.inputs is not None:
        ids = solution_ids(task, puzzles, measurement.rollout.tokens)
        findings.draw("coverage_by_solutions", coverage_figure(ids, puzzles.num_solutions))
    draw_formation(solver, puzzles.first_versions, measurement.history, findings)
    save_trajectories(
        solver.to("cpu"),
        puzzles,
        findings,
        inputs=SAVED_INPUTS,
        chains=SAVED_CHAINS,
        draws=max(2, min(SAVED_DRAWS, 16 * SAVED_DRAWS // task.spec.positions)),
        depth=config.depth,
        seed=config.evaluate.seed,
    )


def _results(
    run: Run, solver: Solver, measurement: Measurement, head_seconds: float, evaluate_seconds: float
) -> dict[str, Any]:
    config, model = solver.config, solver.model
    head_parameters = [p for name, p in model.named_parameters() if name.startswith(f"{HEADS_ATTRIBUTE}.")]
    train_seconds = run.trainer.elapsed + head_seconds
    return {
        "task": config.names["task"],
        "preset": config.preset,
        "seed": config.seed,
        "parameters": sum(p.numel() for p in run.solver.model.parameters()),
        "guide_parameters": sum(p.numel() for p in run.solver.guide.parameters()),
        "head_parameters": sum(p.numel() for p in head_parameters),
        "batches": run.trainer.number,
        "length": {"batches": config.train.batches, "minutes": config.train.minutes},  # the length that the user set
        "seconds": {"train": train_seconds, "evaluate": evaluate_seconds, "total": train_seconds + evaluate_seconds},
        "clock": "wall" if run.trainer.clock is None else "CPU",  # of the batches' seconds
        "head_seconds": head_seconds,  # the training time includes these seconds
        "processes": run.processes.size,
        "peak_memory_mb": peak_memory_mb(),
        "metrics": measurement.metrics,
        "looks": validation_history(run.rows()),
        "uniformity": measurement.uniformity,
        "data": solver.task.provenance(),
        "environment": environment(),
    }


def _write_report(solver: Solver, results: dict[str, Any], findings: Findings) -> None:
    config = solver.config
    findings.add(
        *verdicts.from_metrics(results["metrics"], results["looks"], results["uniformity"]), metrics=results["metrics"]
    )
    findings.write_page(
        solver,
        title=f"pyro_gram: {results['task']}, preset {results['preset']}, seed {results['seed']}",
        summary=summarize_run(config.to_dict(), results),
        details={"Settings": config.to_dict(), "results.json": results},
        all_inputs=not config.evaluate.inputs,
    )
