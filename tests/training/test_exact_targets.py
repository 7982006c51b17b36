"""The exact targets of a lattice agree with a count of all solutions in all their names."""

import pytest
import torch
from torch.nn.functional import one_hot

from pyro_gram.build import build, build_task
from pyro_gram.config import with_settings
from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import MeanFieldELBO
from pyro_gram.tasks.batches import Candidates, TargetStream
from pyro_gram.training.exact_targets import ExactTargets, shares_of_values
from tests.conftest import perturb_, small_config
from tests.training.test_trainer import make_trainer

GRAPHS = {"layout": "graph", "min_vertices": 4, "vertices": 6, "train": 60, "validation": 4, "test": 6}
CASES = [
    {"task": GRAPHS},
    {"task": {**GRAPHS, "colors": 4, "planted_graphs": 12}},
    {"task_name": "nqueens", "task": {"size": 8, "max_queens": 2, "validation": 4}},
]


def lattice_of(task, x):
    """Return z_0: the open values of each token."""
    structure = None if task.spec.structure is None else task.spec.structure(x)
    if structure is None or structure.values is None:
        return torch.ones(len(x), x.shape[-1], task.spec.output_classes)
    return structure.values.float()


@pytest.mark.parametrize("names", CASES)
def test_shares_are_those_among_all_solutions_that_agree(names):
    generator = torch.Generator().manual_seed(0)
    task = build_task(small_config(**names))
    stream = TargetStream(task, task.split("train"), 8, seed=0)
    num_open = 0
    for number in range(6):
        _, batch = stream.with_solutions(number)
        h = lattice_of(task, batch.x)
        answers = [
            task.with_all_names(x, batch.solutions[batch.mask[:, b], b]) for b, x in enumerate(batch.x)
        ]  # all solutions in all names
        for b, own in enumerate(answers):  # decide some tokens as one of the solutions does
            y = own[torch.randint(len(own), (), generator=generator)]
            is_decided = torch.rand(len(y), generator=generator) < number / 6
            h[b, is_decided] = one_hot(y, h.shape[-1])[is_decided].float()
        shares = shares_of_values(h, batch)
        for b, own in enumerate(answers):
            values = one_hot(own, h.shape[-1]).float()
            agree = (values * h[b]).sum(-1).gt(0.5).all(-1)
            assert agree.any()
            x = batch.x[b : b + 1].expand(len(own), *batch.x.shape[1:])
            weights = agree * (-task.log_namings(x, own)).exp().float()  # all solutions are equally probable
            expected = torch.einsum("m,mlv->lv", weights / weights.sum(), values)
            torch.testing.assert_close(shares[b], expected, atol=1e-5, rtol=0)
            num_open += int((shares[b].amax(-1) < 0.99).sum())
    assert num_open > 20


def test_a_lattice_that_agrees_with_no_solution_has_no_shares():
    task = build_task(small_config(task=GRAPHS))
    batch = TargetStream(task, task.split("train"), 4, seed=0).candidates(0)
    h = torch.zeros(4, batch.x.shape[-1], 3)
    h[..., 0] = 1  # one colour for all vertices
    is_joined = (batch.x == 1).any(-1)
    shares = shares_of_values(h, batch)
    assert is_joined.any()
    assert (shares[is_joined] == 0).all()


@pytest.mark.parametrize("names", [*CASES, {"task_name": "sudoku"}, {"task_name": "arc"}])
def test_solutions_undergo_the_symmetry_of_their_pair(names):
    task = build_task(small_config(**names))
    stream = TargetStream(task, task.split("train"), 8, seed=0, group=False)
    num_solutions = 0
    for number in range(3):
        x, y = stream(number)
        own_y, batch = stream.with_solutions(number)
        assert torch.equal(batch.x, x)
        assert torch.equal(own_y, y)
        for b, one in enumerate(batch.x):
            solutions = batch.solutions[batch.mask[:, b], b]
            answers = task.with_all_names(one, solutions)
            assert (answers == y[b]).all(-1).any()
            assert task.is_valid(one[None], answers[:, None]).all()
            assert len(solutions) == (task.count_solutions(one) or len(solutions))
            num_solutions += len(solutions)
    assert num_solutions > 24 or "task" not in names


@pytest.mark.parametrize("names", CASES[::2], ids=["graphs", "queens"])
def test_every_trajectory_of_a_batch_keeps_all_solutions_of_its_own_input(names):
    heads = {"model": {"mixer": "relations", "width": 12, "heads": 3}} if "task_name" not in names else {}
    solver = build(small_config(model_name="lattice", **names, **heads))
    trainer = make_trainer(solver, act=True, supervision_steps=64, batch=8, exact_targets=True)
    num_replaced = 0
    for number in range(12):
        trainer.train_batch(*trainer.batches(number))
        carry = trainer.carry
        num_replaced += int(carry.finished.sum())
        answers = solver.task.canonical_form(carry.x, carry.y)
        for b, (x, y) in enumerate(zip(carry.x, answers, strict=True)):
            own = carry.candidates.solutions[carry.candidates.mask[:, b], b]
            assert solver.task.is_valid(x.expand(len(own), *x.shape), own).all()
            assert (solver.task.canonical_form(x[None], own[:, None])[:, 0] == y).all(-1).any()
            assert len(own.unique(dim=0)) == len(own)
        tensors = carry.candidates.state_dict()
        loaded = Candidates.from_state_dict(carry.x, tensors)
        assert torch.equal(loaded.solutions, carry.candidates.solutions)
        assert torch.equal(loaded.mask, carry.candidates.mask)
    assert num_replaced > 8


@pytest.mark.parametrize("names", CASES[::2], ids=["graphs", "queens"])
def test_the_loss_is_the_mean_of_the_losses_of_all_solutions(names):
    heads = {"model": {"mixer": "relations", "width": 12, "heads": 3}} if "task_name" not in names else {}
    config = small_config(model_name="lattice", **names, **heads, prior={"certainty": 1.0})
    solver = build(with_settings(config, {"model": {"transitions": 1}}))
    perturb_(solver.model, 0.1)
    task = solver.task
    stream = TargetStream(task, task.split("train"), 8, seed=0, group=False)
    elbo = MeanFieldELBO()

    def loss(x, y):
        torch.manual_seed(3)  # the same token is decided for every y
        with torch.no_grad():
            elbo.loss(solver.model, solver.guide, x[None], y[None], steps=1)
        return (elbo.terms.reconstruction + elbo.terms.kl.sum(0)).item()

    _, batch = stream.with_solutions(0)
    num_several = 0
    for b, x in enumerate(batch.x):
        own = task.with_all_names(x, batch.solutions[batch.mask[:, b], b])
        num_several += len(own) > 1
        weights = (-task.log_namings(x.expand(len(own), *x.shape), own)).exp()
        plain = torch.tensor([loss(x, y) for y in own])
        expected = (weights * plain).sum() / weights.sum()
        candidates = Candidates.from_state_dict(x[None], {k: v[b : b + 1] for k, v in batch.state_dict().items()})
        with ExactTargets(candidates):
            exact = torch.tensor([loss(x, y) for y in own[:3]])
        torch.testing.assert_close(exact, expected.float().expand(len(exact)), atol=1e-3, rtol=1e-3)
    assert num_several > 3


def test_a_trainer_without_all_solutions_is_refused():
    trainer = make_trainer(build(small_config(model_name="lattice", task_name="nqueens")))
    stream, trainer.with_solutions = trainer.batches, None
    with pytest.raises(ConfigError, match="train.exact_targets needs batches with every solution"):
        trainer.train_batch(*stream(0))
