"""A solver gives the same answers in threads, inside other Pyro programs, in event loops and in forked processes."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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
from pyro_gram.training.heads import attach_heads
from tests.conftest import ROOT, small_config

TEXTS = ["Cr", "C]", "CF"]  # three graphs of four vertices


@pytest.fixture(scope="module")
def solver():
    torch.manual_seed(3)
    solver = build(small_config())
    for parameter in solver.model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)  # so that trajectories differ
    return solver


def answers(solver, seed, **settings):
    """Return the tokens and scores of one request."""
    samples = solver.sample(TEXTS, num_samples=5, depth=3, seed=seed, **settings)
    return samples.tokens.tolist(), samples.score.tolist()


def smc_answers(solver, seed):
    """Return the tokens and scores of one request with ``draws="smc"``."""
    return answers(solver, seed, draws="smc", halt=1)


def answers_from_threads(solver, num_requests):
    """Return the answers for the seeds 0, 1, ... Threads that start together make the requests."""
    num_threads = min(4, num_requests)  # the pool starts at most one thread per request
    barrier = threading.Barrier(num_threads)
    with ThreadPoolExecutor(num_threads, initializer=barrier.wait) as pool:
        return list(pool.map(lambda seed: answers(solver, seed), range(num_requests)))


def test_threads_get_the_answers_of_their_seeds(solver):
    expected = [answers(solver, seed) for seed in range(24)]
    assert len({str(a) for a in expected}) == 24
    assert answers_from_threads(solver, 24) == expected


def test_smc_requests_do_not_disturb_other_requests(solver):
    config = small_config(heads={"hidden": 16, "attention_heads": 2, "layers": 1})
    smc_solver = build(config)
    attach_heads(smc_solver.model, config.model, smc_solver.task, config.heads, config.seed)
    expected = [answers(solver, seed) for seed in range(10)]
    smc_expected = [smc_answers(smc_solver, seed) for seed in range(10)]
    with ThreadPoolExecutor(4) as pool:
        smc_requests = [pool.submit(smc_answers, smc_solver, seed) for seed in range(10)]
        assert list(pool.map(lambda seed: answers(solver, seed), range(10))) == expected
        assert [request.result() for request in smc_requests] == smc_expected


def test_several_solvers_take_turns(solver):
    other = replace(solver)
    expected = answers(solver, 1)
    with ThreadPoolExecutor(4) as pool:
        assert all(a == expected for a in pool.map(lambda s: answers(s, 1), [solver, other] * 4))


def test_a_request_that_fails_blocks_no_other_thread(solver):
    def fail(_):
        raise RuntimeError("no more")

    expected = answers(solver, 2)
    with pytest.raises(RuntimeError, match="no more"):
        solver.sample(TEXTS, num_samples=5, progress=fail)
    assert answers_from_threads(solver, 3)[2] == expected


def test_an_event_loop_gets_the_answers_of_its_seeds(solver):
    async def serve():
        return await asyncio.gather(*(asyncio.to_thread(answers, solver, seed) for seed in range(6)))

    assert asyncio.run(serve()) == [answers(solver, seed) for seed in range(6)]


def test_a_solver_inside_another_program_ignores_its_plates_and_adds_no_site(solver):
    expected, results = answers(solver, 4), []

    def program():
        with pyro.plate("data", 3, dim=-1), pyro.plate("trajectories", 2, dim=-2):
            results.append(answers(solver, 4))
            pyro.sample("mine", dist.Normal(0.0, 1.0))

    trace = poutine.trace(program).get_trace()
    assert results == [expected]
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


def test_handlers_are_restored_after_an_error(solver):
    with poutine.trace() as tracer, pyro.plate("data", 3, dim=-1):
        with pytest.raises(InputError):
            solver.sample("no graph at all")
        with pytest.raises(ZeroDivisionError):
            solver.sample(TEXTS, num_samples=5, progress=lambda _: 1 / 0)
        pyro.sample("mine", dist.Normal(0.0, 1.0))
    assert tracer.trace.nodes["mine"]["value"].shape == (3,)


def test_a_checkpoint_can_be_loaded_while_a_solver_works(solver, tmp_path):
    save_model(tmp_path / "m.safetensors", solver)
    expected, stop = [answers(solver, seed) for seed in range(8)], threading.Event()

    def load_repeatedly():
        while not stop.is_set():
            load(tmp_path / "m.safetensors")

    thread = threading.Thread(target=load_repeatedly)
    thread.start()
    try:
        assert [answers(solver, seed) for seed in range(8)] == expected
    finally:
        stop.set()
        thread.join(30)


FORK_SCRIPT = """
import multiprocessing, sys, torch
import pyro_gram
torch.set_num_threads(2)
solver = pyro_gram.load(sys.argv[1])
def answer(seed):
    return solver.solve(["GCR`v_"] * 10, num_samples=40, depth=2, seed=seed)[0].solutions[0].solution
expected = answer(3)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(answer, [3, 3]).get(60) == [expected, expected]
"""


@pytest.mark.slow
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_pool_answers_although_torch_had_threads():
    checkpoint = ROOT / "checkpoints" / "coloring.safetensors"
    variables = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", FORK_SCRIPT, str(checkpoint)], check=True, timeout=120, env=variables)


def _send_answers(pipe, solver, seed):
    pipe.send(answers(solver, seed))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_process_forked_while_another_thread_samples_gives_answers(solver):
    expected = answers(solver, 9)  # torch has started threads here; the forked process will not have them
    context = multiprocessing.get_context("fork")
    has_started, stop = threading.Event(), threading.Event()

    def hold(_):
        has_started.set()
        stop.wait(0.2)

    thread = threading.Thread(target=lambda: solver.sample(TEXTS, num_samples=4, progress=hold))
    thread.start()
    has_started.wait(30)
    receiver, sender = context.Pipe()
    process = context.Process(target=_send_answers, args=(sender, solver, 9))
    process.start()
    stop.set()
    assert receiver.poll(60), "the forked process does not answer"
    assert receiver.recv() == expected
    process.join(30)
    thread.join(30)


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
def test_a_single_input_may_be_given_without_a_list(solver, make):
    expected = solver.solve([TEXTS[0]], num_samples=2)[0]
    (result,) = solver.solve(make(TEXTS[0]), num_samples=2)
    assert (result.input, result.solutions) == (expected.input, expected.solutions)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_bytes_and_texts_may_begin_with_a_mark(solver, encoding):
    expected = solver.solve([TEXTS[0]], num_samples=2)
    for x in ((TEXTS[0] + "\r\n").encode(encoding), "\ufeff" + TEXTS[0]):
        assert solver.solve(x, num_samples=2) == expected


def test_a_path_stands_for_all_puzzles_of_its_file(solver, tmp_path, monkeypatch):
    (tmp_path / "graphs.g6").write_text("\n".join(TEXTS))
    expected = solver.solve(TEXTS, num_samples=2)
    assert [a.solutions for a in solver.solve(tmp_path / "graphs.g6", num_samples=2)] == [a.solutions for a in expected]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="to read the file of this name, give pathlib.Path"):
        solver.solve("graphs.g6")
    with pytest.raises(InputError, match="graphs.g7"):
        solver.solve(tmp_path / "graphs.g7")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (set(TEXTS), "a set of inputs has no order"),
        ({"a": "Cr"}, "a dict of inputs has no order"),
        ({"a": "Cr"}.keys(), "the graph has 34 vertices"),  # keys have an order; "a" is read as a graph
        (np.array(5), r"an input is a text, not array\(5\)"),
        (torch.tensor(5), r"an input is a text, not tensor\(5\)"),
        (["Cr", np.full((4, 4), 1)], "input 2, read as tokens"),
        (7, "an input is a text, not 7"),
        ([7], "an input is a text, not 7"),
        ([None], "an input is a text, not None"),
        ([], "no input: give at least one"),
        ((), "no input: give at least one"),
        (b"\xff\xfe\x00", "an input of bytes begins as UTF-16 but is damaged"),
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
def test_other_values_are_refused_in_one_sentence(solver, x, message):
    with pytest.raises(InputError, match=message):
        solver.sample(x, num_samples=2)


@pytest.mark.parametrize("form", [np.array, torch.tensor, lambda rows: [np.array(row) for row in rows]])
def test_numbers_of_a_matrix_or_board_are_not_mistaken_for_tokens(solver, form):
    matrix = nx.to_numpy_array(graph_of("Cr"), dtype=int).tolist()
    with pytest.raises(InputError, match="are not the tokens that task.parse returns"):
        solver.sample(form([matrix]), num_samples=2)
    one_way = [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]]
    with pytest.raises(InputError, match="are not the tokens that task.parse returns"):
        solver.sample(form([one_way]), num_samples=2)
    complete = [[2 if i == j else 1 for j in range(4)] for i in range(4)]
    with pytest.raises(InputError, match="as tokens, is 'C~': the graph is not 3-colourable"):
        solver.sample(form([complete]), num_samples=2)
    sudoku_solver = build(small_config(task_name="sudoku"))
    board = [0, 4, 1, 2, 0, 2, 0, 0, 2, 1, 0, 0, 4, 3, 2, 0]
    with pytest.raises(InputError, match="are not the tokens that task.parse returns"):
        sudoku_solver.sample(form([board]), num_samples=2)
    (result,) = sudoku_solver.solve(str(board), num_samples=2)
    assert result.input == ".412.2..21..432."


def test_a_graph_is_refused_by_a_task_of_boards():
    solver = build(small_config(task_name="nqueens"))
    with pytest.raises(InputError, match="an input of the task nqueens is no graph"):
        solver.sample(nx.path_graph(3))


def test_integers_of_any_type_are_accepted(solver):
    expected = solver.sample(TEXTS, num_samples=3, depth=2, seed=5)
    for kind in (np.int64, np.uint8, lambda n: torch.tensor(n)):
        samples = solver.sample(TEXTS, num_samples=kind(3), depth=kind(2), seed=kind(5))
        assert torch.equal(samples.tokens, expected.tokens)
    assert solver.solve(TEXTS, num_samples=np.int64(3))[0].num_samples == 3


@pytest.mark.parametrize("name", ["num_samples", "depth", "seed"])
@pytest.mark.parametrize("value", [2.0, True, "2", np.float32(2), np.bool_(True)])
def test_other_numbers_are_refused(solver, name, value):
    for call in (solver.sample, solver.solve):
        with pytest.raises(UserError, match=f"{name} must be a whole number, not"):
            call(TEXTS, **{name: value})
