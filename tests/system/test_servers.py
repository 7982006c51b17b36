"""One solver in threads, inside other Pyro programs, in an event loop and in forked processes: the same answers."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import networkx as nx
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

from pyro_gram.build import build
from pyro_gram.checkpoint import load, save_model
from pyro_gram.errors import InputError, UserError
from pyro_gram.runs.heads import attach
from pyro_gram.solver import Solver
from tests.conftest import ROOT, small_config

TEXTS = ["Cr", "C]", "CF"]  # three graphs of four vertices


@pytest.fixture(scope="module")
def solver():
    torch.manual_seed(3)
    config = small_config()
    solver = build(config)
    for parameter in solver.model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)  # so that trajectories differ
    return Solver(config, solver.task, solver.model, solver.guide)


def answers(solver, seed):
    """All that a request returns."""
    rolled = solver.sample(TEXTS, num_samples=5, depth=3, seed=seed)
    return rolled.tokens.tolist(), rolled.score.tolist()


def weighed(solver, seed):
    """All that a request returns which is weighed by the value head."""
    rolled = solver.sample(TEXTS, num_samples=5, depth=3, seed=seed, draws="smc", halt=1)
    return rolled.tokens.tolist(), rolled.score.tolist()


def in_threads(solver, requests, threads=4):
    """The answers to the seeds 0, 1, ..., asked for by several threads that begin together."""
    threads = min(threads, requests)  # no thread is made without a request
    begin = threading.Barrier(threads)
    with ThreadPoolExecutor(threads, initializer=begin.wait) as pool:
        return list(pool.map(lambda seed: answers(solver, seed), range(requests)))


def test_threads_get_the_answers_of_their_seeds(solver):
    alone = [answers(solver, seed) for seed in range(12)]
    assert len({str(a) for a in alone}) == 12
    assert in_threads(solver, 12) == alone


@pytest.mark.slow
def test_threads_get_the_answers_of_their_seeds_a_thousand_times(solver):
    alone = [answers(solver, seed) for seed in range(1000)]
    assert in_threads(solver, 1000) == alone


def test_requests_that_are_weighed_disturb_no_others(solver):
    headed = small_config(heads={"hidden": 16, "attention_heads": 2, "layers": 1})
    solver = build(headed)
    attach(solver.model, solver.task, headed)
    wise = Solver(headed, solver.task, solver.model, solver.guide)
    alone, heavy = [answers(solver, seed) for seed in range(40)], [weighed(wise, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(weighed, wise, seed) for seed in range(40)]
        assert list(pool.map(lambda seed: answers(solver, seed), range(40))) == alone
        assert [other.result() for other in others] == heavy


def test_several_solvers_take_turns(solver):
    other = Solver(solver.config, solver.task, solver.model, solver.guide)
    alone = answers(solver, 1)
    with ThreadPoolExecutor(4) as pool:
        assert all(a == alone for a in pool.map(lambda s: answers(s, 1), [solver, other] * 6))


def test_a_thread_that_fails_leaves_the_others_their_turn(solver):
    def broken(_):
        raise RuntimeError("no more")

    alone = answers(solver, 2)
    with pytest.raises(RuntimeError, match="no more"):
        solver.sample(TEXTS, num_samples=5, progress=broken)
    assert in_threads(solver, 3)[2] == alone


def test_an_event_loop_is_served_from_its_threads(solver):
    async def serve():
        return await asyncio.gather(*(asyncio.to_thread(answers, solver, seed) for seed in range(6)))

    assert asyncio.run(serve()) == [answers(solver, seed) for seed in range(6)]


def test_a_solver_inside_another_program_neither_meets_its_plates_nor_adds_to_its_trace(solver):
    alone, seen = answers(solver, 4), []

    def program():
        with pyro.plate("data", 3, dim=-1), pyro.plate("trajectories", 2, dim=-2):
            seen.append(answers(solver, 4))
            pyro.sample("mine", dist.Normal(0.0, 1.0))

    trace = poutine.trace(program).get_trace()
    assert seen == [alone]
    assert {name for name, site in trace.nodes.items() if site["type"] == "sample"} == {"data", "trajectories", "mine"}
    assert trace.nodes["mine"]["value"].shape == (2, 3)
    assert not _PYRO_STACK
    assert not _DIM_ALLOCATOR._stack


@pytest.mark.parametrize(
    "handler",
    [
        poutine.condition(data={"eps_0": torch.zeros(1)}),
        poutine.do(data={"eps_0": torch.zeros(1)}),
        poutine.scale(scale=2.0),
        poutine.mask(mask=False),
    ],
)
def test_a_handler_that_would_be_ignored_is_refused(solver, handler):
    with handler, pytest.raises(UserError, match=f"{type(handler).__name__} is active here"):
        solver.solve(TEXTS, num_samples=2)
    assert not _PYRO_STACK


def test_handlers_come_back_after_an_error(solver):
    with poutine.trace() as tracer, pyro.plate("data", 3, dim=-1):
        with pytest.raises(InputError):
            solver.sample("no graph at all")
        with pytest.raises(ZeroDivisionError):
            solver.sample(TEXTS, num_samples=5, progress=lambda _: 1 / 0)
        pyro.sample("mine", dist.Normal(0.0, 1.0))
    assert tracer.trace.nodes["mine"]["value"].shape == (3,)


def test_a_checkpoint_can_be_loaded_beside_a_solver_at_work(solver, tmp_path):
    save_model(tmp_path / "m.safetensors", solver)
    alone, stop = [answers(solver, seed) for seed in range(12)], threading.Event()

    def load_all_the_time():
        while not stop.is_set():
            load(tmp_path / "m.safetensors")

    busy = threading.Thread(target=load_all_the_time)
    busy.start()
    try:
        assert [answers(solver, seed) for seed in range(12)] == alone
    finally:
        stop.set()
        busy.join(30)


FORKED = """
import multiprocessing, sys, torch
import pyro_gram
torch.set_num_threads(2)
solver = pyro_gram.load(sys.argv[1])
def answers(seed):
    return solver.solve(["GCR`v_"] * 30, num_samples=40, seed=seed)[0].solutions[0].solution
alone = answers(3)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(answers, [3, 3]).get(60) == [alone, alone]
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_pool_answers_where_torch_had_threads():
    checkpoint = ROOT / "checkpoints" / "coloring8.safetensors"
    variables = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", FORKED, str(checkpoint)], check=True, timeout=120, env=variables)


def _child(pipe, solver, seed):
    pipe.send(answers(solver, seed))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_fork_answers_even_one_made_while_another_thread_samples(solver):
    expected = answers(solver, 9)  # torch has run in this process: a fork has none of its threads
    context = multiprocessing.get_context("fork")
    entered, stop = threading.Event(), threading.Event()

    def hold(_):
        entered.set()
        stop.wait(0.2)

    busy = threading.Thread(target=lambda: solver.sample(TEXTS, num_samples=4, progress=hold))
    busy.start()
    entered.wait(30)
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(there, solver, 9))
    child.start()
    stop.set()
    assert here.poll(60), "the forked process does not answer"
    assert here.recv() == expected
    child.join(30)
    busy.join(30)


# ---- what an input may be ---------------------------------------------------------------------------------------


def graph_of(text):
    return nx.from_graph6_bytes(text.encode())


def tokens(solver):
    return torch.stack([solver.task.parse(text) for text in TEXTS])


@pytest.mark.parametrize(
    "make",
    [
        lambda s: tuple(TEXTS),
        lambda s: (text for text in TEXTS),
        lambda s: dict.fromkeys(TEXTS).keys(),
        lambda s: [text.encode() for text in TEXTS],
        lambda s: np.array(TEXTS),
        lambda s: np.array(TEXTS, dtype=object),
        lambda s: [graph_of(text) for text in TEXTS],
        lambda s: (nx.relabel_nodes(graph_of(text), dict(enumerate("wxyz"))) for text in TEXTS),
        lambda s: tokens(s),
        lambda s: tokens(s).numpy(),
        lambda s: tokens(s).to(torch.int32),
        lambda s: tokens(s).numpy().astype(np.uint8),
        lambda s: list(tokens(s)),
        lambda s: [row.numpy() for row in tokens(s)],
        lambda s: [row.tolist() for row in tokens(s)],
    ],
)
def test_inputs_in_many_forms_are_the_same_inputs(solver, make):
    expected = solver.sample(TEXTS, num_samples=2).tokens
    assert torch.equal(solver.sample(make(solver), num_samples=2).tokens, expected)


@pytest.mark.parametrize("make", [lambda t: t, lambda t: t.encode(), graph_of, lambda t: bytearray(t.encode())])
def test_one_input_needs_no_list(solver, make):
    expected = solver.solve([TEXTS[0]], num_samples=2)[0]
    (solved,) = solver.solve(make(TEXTS[0]), num_samples=2)
    assert (solved.input, solved.solutions) == (expected.input, expected.solutions)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_bytes_and_texts_may_begin_with_a_mark(solver, encoding):
    expected = solver.solve([TEXTS[0]], num_samples=2)
    for x in ((TEXTS[0] + "\r\n").encode(encoding), "\ufeff" + TEXTS[0]):
        assert solver.solve(x, num_samples=2) == expected


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (set(TEXTS), "a set of inputs has no order"),
        ({"a": "Cr"}, "a dict of inputs has no order"),
        ({"a": "Cr"}.keys(), "the graph has 34 vertices"),  # a view has an order; the text is a
        (np.array(5), r"an input is a text, not array\(5\)"),
        (torch.tensor(5), r"an input is a text, not tensor\(5\)"),
        (["Cr", np.full((4, 4), 1)], "the numbers of input 2"),
        (7, "an input is a text, not 7"),
        ([7], "an input is a text, not 7"),
        ([None], "an input is a text, not None"),
        ([], "no input: give at least one"),
        ((), "no input: give at least one"),
        (b"\xff\xfe\x00", "an input of bytes begins as UTF-16 and is not"),
        (b"Fran\xe7ois", "an input of bytes is not UTF-8"),
        (np.zeros((1, 4, 4)), "tokens are whole numbers, not torch.float64"),
        (torch.zeros(1, 4, 4) > 0, "tokens are whole numbers, not torch.bool"),
        (np.zeros((2, 3), dtype=int), r"must have the shape \[B, 4, 4\], not \[2, 3\]"),
        ([np.full((4, 4), 9), np.zeros((3, 3), dtype=int)], "inputs differ in shape"),
        ([["Cr", "CF"]], "an input is a text, not"),
        (nx.DiGraph([(0, 1)]), "directed"),
        (nx.path_graph(3), "the graph has 3 vertices"),
        (open, "an input is a text, not"),
    ],
)
def test_what_is_no_input_is_refused_in_one_sentence(solver, x, message):
    with pytest.raises(InputError, match=message):
        solver.sample(x, num_samples=2)


@pytest.mark.parametrize("form", [np.array, torch.tensor, lambda rows: [np.array(row) for row in rows]])
def test_a_matrix_or_a_board_in_numbers_is_not_taken_for_tokens(solver, form):
    matrix = nx.to_numpy_array(graph_of("Cr"), dtype=int).tolist()
    with pytest.raises(InputError, match="are no tokens as task.parse"):
        solver.sample(form([matrix]), num_samples=2)
    one_way = [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]]
    with pytest.raises(InputError, match="are no tokens as task.parse"):
        solver.sample(form([one_way]), num_samples=2)
    complete = [[2 if i == j else 1 for j in range(4)] for i in range(4)]
    with pytest.raises(InputError, match="as tokens, are 'C~': the graph is not 3-colourable"):
        solver.sample(form([complete]), num_samples=2)
    config = small_config(task_name="sudoku")
    solver = build(config)
    boards = Solver(config, solver.task, solver.model, solver.guide)
    board = [0, 4, 1, 2, 0, 2, 0, 0, 2, 1, 0, 0, 4, 3, 2, 0]
    with pytest.raises(InputError, match="are no tokens as task.parse"):
        boards.sample(form([board]), num_samples=2)
    (solved,) = boards.solve(str(board), num_samples=2)
    assert solved.input == ".412.2..21..432."


def test_a_graph_is_no_input_of_boards():
    config = small_config(task_name="nqueens")
    solver = build(config)
    with pytest.raises(InputError, match="an input of the task nqueens is no graph"):
        Solver(config, solver.task, solver.model, solver.guide).sample(nx.path_graph(3))


def test_whole_numbers_of_any_type_count(solver):
    expected = solver.sample(TEXTS, num_samples=3, depth=2, seed=5)
    for kind in (np.int64, np.uint8, lambda n: torch.tensor(n)):
        rolled = solver.sample(TEXTS, num_samples=kind(3), depth=kind(2), seed=kind(5))
        assert torch.equal(rolled.tokens, expected.tokens)
    assert solver.solve(TEXTS, num_samples=np.int64(3))[0].num_samples == 3


@pytest.mark.parametrize("name", ["num_samples", "depth", "seed"])
@pytest.mark.parametrize("value", [2.0, True, "2", np.float32(2), np.bool_(True)])
def test_other_numbers_do_not(solver, name, value):
    for call in (solver.sample, solver.solve):
        with pytest.raises(UserError, match=f"{name} must be a whole number, not"):
            call(TEXTS, **{name: value})
