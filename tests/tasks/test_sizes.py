"""Batches and rollouts of inputs of several sizes."""

import networkx as nx
import pytest
import torch

from pyro_gram.build import build
from pyro_gram.config import make_run_config
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.inference.elbo import MeanFieldELBO
from pyro_gram.inference.sites import ANSWER
from pyro_gram.runs.preflight import check_rollout
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.steps import run_steps
from pyro_gram.tasks.batches import TargetStream

SMALL = {
    "task": {
        "layout": "graph",
        "min_vertices": 4,
        "vertices": 7,
        "train": 150,
        "validation": 8,
        "test": 16,
        "colors": 4,
        "planted_graphs": 60,
        "planted_vertices": 9,
    },
    "model": {"width": 16, "heads": 4, "hidden": 16, "layers": 1, "transitions": 1, "mixer": "relations"},
    "train": {"batch": 8, "on_policy_depth": 4, "on_policy_updates": 2},
}
NAMES = {"task": "coloring", "model": "gram", "prior": "gaussian", "guide": "amortized"}


def small_solver(**names):
    settings = {part: dict(fields) for part, fields in SMALL.items()}
    return build(make_run_config({**NAMES, **names}, settings))


@pytest.fixture(scope="module")
def task():
    return small_solver().task


def test_a_batch_holds_inputs_of_nearly_one_size_and_an_epoch_holds_each_input_once(task):
    puzzles = task.split("train")
    stream = TargetStream(task, puzzles, 8, seed=0, augment=False)
    visited, spans, lengths = [], [], set()
    for number in range(stream.batches_per_epoch):
        x, y = stream(number)
        sizes = task.spec.sizes_of(x)
        assert x.shape[-1] == x.shape[-2] == y.shape[-1] == int(sizes.max())
        assert task.is_valid(x, y).all()
        spans.append(int(sizes.max() - sizes.min()))
        lengths.add(x.shape[-1])
        visited += [task.format_input(one) for one in x]
    inputs = [task.format_input(one) for one in puzzles.inputs]
    assert len(lengths) > 3
    assert sum(spans) / len(spans) < 1
    remainder = len(puzzles) - len(visited)
    assert 0 <= remainder < 8
    assert sum(min(visited.count(text), inputs.count(text)) for text in set(inputs)) == len(visited)


def test_a_stream_without_groups_has_one_shape(task):
    stream = TargetStream(task, task.split("train"), 8, seed=0, group=False)
    assert {stream(number)[0].shape for number in range(6)} == {(8, 9, 9)}


def test_candidates_are_complete_inputs_of_nearly_one_size(task):
    puzzles = task.split("train")
    complete = {task.format_input(puzzles.inputs[i]) for i in puzzles.complete_rows}
    assert len(complete) < len(puzzles)
    stream = TargetStream(task, puzzles, 8, seed=0)
    sizes = []
    for number in range(12):
        batch = stream.candidates(number)
        assert {task.format_input(one) for one in batch.x} <= complete
        assert task.is_valid(batch.x, batch.solutions).all()
        assert batch.is_token.sum(1).tolist() == task.spec.sizes_of(batch.x).tolist()
        names = batch.namings[:, batch.solutions.clamp(max=3)]  # [P, K, B, L]
        names = torch.where(batch.is_token, names, 0)
        is_valid = task.is_valid(batch.x, names)  # [P, K, B]
        assert is_valid.movedim(1, 0)[:, batch.is_naming].all()
        sizes.append(int(task.spec.sizes_of(batch.x).float().mean()))
    assert len(set(sizes)) > 2


def test_a_rollout_of_several_sizes_gives_each_input_what_it_gets_alone():
    """Without noise an answer depends on its input only."""
    solver = small_solver(prior="none", guide="prior")
    x = solver.task.split("test").inputs
    samples = rollout(solver.model, x, num_samples=2, depth=3, max_trajectories=6, history=True)
    assert samples.tokens.shape == (2, len(x), x.shape[-1])
    for i, one in enumerate(x):
        cropped, _ = solver.task.spec.crop(one[None], one[None, 0])
        with torch.no_grad():
            end = run_steps(solver.model, cropped, None, 1, 3)
        n = cropped.shape[-1]
        assert torch.equal(samples.tokens[0, i, :n], end.values[ANSWER][0, 0])
        assert (samples.tokens[:, i, n:] == 0).all()
        assert torch.equal(samples.history[-1, 0, i], samples.tokens[0, i])
        score = end.likelihood.log_prob(end.values[ANSWER])
        assert samples.score[0, i].item() == pytest.approx(score.item(), abs=1e-4)


def test_a_solver_answers_graphs_of_several_sizes_in_their_order():
    solver = small_solver()
    texts = ["Dhc", "C~", "FhCKG", "GhCKGK"]  # a ring of 5, all edges of 4, paths
    answers = solver.solve(texts, num_samples=4, depth=2, colors=4)
    assert [one.input.split()[0] for one in answers] == texts
    assert [len(one.solutions[0].solution) for one in answers] == [5, 4, 7, 8]


def test_large_inputs_run_in_smaller_chunks():
    solver = small_solver()
    small, large = (solver._tokens([nx.path_graph(n)]) for n in (8, 32))
    assert solver._chunk_size(None, large) * 4 == solver._chunk_size(None, small)
    assert solver._chunk_size(20, large) < solver._chunk_size(20, small) / 3


def test_an_input_that_is_all_padding_is_refused():
    solver = small_solver()
    x = solver.task.parse("C~")[None].repeat(2, 1, 1)
    x[1] = 0
    x[1].diagonal().fill_(solver.task.spec.padding)
    with pytest.raises(InputError, match="input 2 has no token that is not padding"):
        solver.solve(x)


def test_all_names_of_solutions_are_right_answers_and_nothing_else_is(task):
    puzzles = task.split("test")
    sizes = task.spec.sizes_of(puzzles.inputs)
    index, n = int(sizes.argmin()), int(sizes.min())
    x = puzzles.inputs[index]
    answers = task.with_all_names(x, puzzles.solutions_of(index))
    every = torch.cartesian_prod(*[torch.arange(3)] * n)
    padded = torch.nn.functional.pad(every, (0, x.shape[-1] - n))
    assert answers.tolist() == padded[task.is_valid(x.expand(len(every), -1, -1), padded)].tolist()
    counts = task.log_namings(x, puzzles.solutions_of(index)).exp().round()
    assert counts.sum() == len(answers)


@pytest.mark.parametrize(
    "names",
    [*({"prior": name} for name in ("student_t", "mixture", "low_rank", "flow")), {"guide": "mean_field"}],
    ids=lambda names: "-".join(names.values()),
)
def test_graphs_of_one_size_need_no_mask_and_take_every_prior_and_guide(names):
    sizes = {"min_vertices": 0, "colors": 3, "planted_graphs": 0, "planted_vertices": 20}
    solver = build(make_run_config({**NAMES, **names}, {**SMALL, "task": {**SMALL["task"], **sizes}}))
    assert solver.task.spec.padding is None
    x, y = solver.task.split("train").sample_pairs(4, torch.Generator().manual_seed(0))
    assert solver.task.spec.structure(x).mask is None
    loss = MeanFieldELBO().loss(solver.model, solver.guide, x, y)
    assert torch.isfinite(torch.as_tensor(loss)).all()


@pytest.mark.parametrize("prior", ["student_t", "mixture", "low_rank", "flow"])
def test_a_prior_without_a_form_for_padding_is_refused_before_training_begins(prior):
    with pytest.raises(ConfigError, match="no form for padding: use --prior gaussian, or a task with inputs of one"):
        check_rollout(small_solver(prior=prior))
    check_rollout(small_solver())


def test_the_number_of_colours_of_a_text_is_where_the_search_begins():
    solver = small_solver()
    answers = solver.solve(["GCR`v_ colors=4", "C~ colors=3"], num_samples=2)
    assert (answers[0].colors, answers[0].fewer_colors) == (4, {})
    assert answers[1].fewer_colors == {3: "proved impossible"}


def test_a_misspelt_option_of_solve_is_an_error():
    with pytest.raises(TypeError, match="unknown option 'colours'; did you mean colors?"):
        small_solver().solve(["C~"], colours=4)
