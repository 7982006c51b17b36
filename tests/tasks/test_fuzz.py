"""Give damaged files to all readers. Each file must be read, or refused in one sentence, within seconds.

The inputs that a reader accepts must agree with the text: a second, much simpler reader of each format checks them.
``PYRO_GRAM_FUZZ_SEED`` sets another seed.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from experiments import run, solve
from pyro_gram.checkpoint import load
from pyro_gram.diagnostics import inference_data
from pyro_gram.errors import InputError
from pyro_gram.presets import read_preset
from pyro_gram.runs.state import load_state
from pyro_gram.system.files import read_json
from pyro_gram.system.text import decode, read_text
from pyro_gram.tasks.arc.data import ArcConfig, read_folder
from pyro_gram.tasks.arc.task import Arc
from pyro_gram.tasks.base import Task
from pyro_gram.tasks.coloring.task import Coloring, ColoringConfig
from pyro_gram.tasks.mnist import read_images, read_labels
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig
from pyro_gram.tasks.sudoku.data import read_csv
from pyro_gram.tasks.sudoku.task import Sudoku, SudokuConfig
from tests.conftest import small_config
from tests.tasks.damaged import check_reader, command_lines, damaged_files, damaged_texts
from tests.test_checkpoint import model_file, state_file, trainer_of  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # shown if a test fails

ARC = {
    "train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0]], "output": [[0, 2]]}],
    "test": [{"input": [[3, 0]], "output": None}, {"input": [[4], [0]]}],
}
CYCLE = nx.cycle_graph(8)
DIMACS = "c a ring\np edge 8 8\n" + "".join(f"e {u + 1} {v + 1}\n" for u, v in CYCLE.edges)
SUDOKU_4 = ".412.2..21..432."
SUDOKU_4_ROWS = "\n".join(SUDOKU_4[i : i + 4] for i in range(0, 16, 4))
SUDOKU_4_BOXES = ". 4 | 1 2\n. 2 | . .\n----+----\n2 1 | . .\n4 3 | 2 ."
GRID_9 = "247659318689137425531482967874921653915346782362875149798514236423768591156293874"
SUDOKU_9 = GRID_9[:40] + "." * 41
QUEENS = "Q......./......../....Q.../......../......../......../......../........"
PRESET = (
    "# A preset.\n[cpu.task]\nvertices = 8\n[cpu.train]\nbatches = 2000\nminutes = 15.0\n[tiny.beta]\ntarget = 0.5\n"
)
IDX_IMAGES = b"\0\0\x08\x03\0\0\0\x02\0\0\0\x1c\0\0\0\x1c" + bytes(range(196)) * 8
IDX_LABELS = b"\0\0\x08\x01\0\0\0\x03\x01\x02\x03"
TASKS: dict[str, Task] = {
    "coloring": Coloring(ColoringConfig()),
    "sudoku": Sudoku(SudokuConfig(size=4)),
    "nqueens": NQueens(NQueensConfig()),
}


# ---- readers, each with a check of the inputs it accepts ------------------------------------------------------------


def decode_text(data: bytes) -> str:
    """Return the text as the user sees it. Raises InputError if the data are not text."""
    with contextlib.suppress(OSError, EOFError):
        data = gzip.decompress(data)
    return decode(data, "the file")


def read_puzzles(task: Task, check: Callable[[Task, str, list[torch.Tensor]], None], folder: Path, data: bytes) -> None:
    path = folder / "puzzles.txt"
    path.write_bytes(data)
    inputs = list(task.read_inputs(read_text(path)))
    assert inputs, "neither an input nor an error"
    check(task, decode_text(data), inputs)


def check_graphs(task: Task, text: str, inputs: list[torch.Tensor]) -> None:
    """Compare the inputs with the edges of DIMACS, or with the graphs that networkx reads."""
    edges = [{tuple(sorted(pair)) for pair in nx.from_numpy_array(task.adjacency(x).numpy()).edges} for x in inputs]
    if re.search(r"^\s*[pea]\s", text, re.M | re.I):
        edge_lines = [line.split() for line in text.split("\n") if re.match(r"\s*e\s", line, re.I)]
        assert sum(map(len, edges)) <= len(edge_lines)
        assert set().union(*edges) == {tuple(sorted((int(u) - 1, int(v) - 1))) for _, u, v, *_ in edge_lines}
        return
    lines = [re.sub(r">>\w+<<", "", line).strip().strip("\"'").strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    assert len(lines) == len(inputs)
    for line, input_edges in zip(lines, edges, strict=True):
        read = nx.from_sparse6_bytes if line.startswith(":") else nx.from_graph6_bytes
        assert {tuple(sorted(pair)) for pair in read(line.encode()).edges()} == input_edges


def check_clues(task: Task, text: str, inputs: list[torch.Tensor]) -> None:
    """Assert that the clues of all boards occur in the text, in the same order."""
    digits = iter(c for c in text.translate({0xFF10 + d: str(d) for d in range(10)}) if c in "123456789")
    for x in inputs:
        assert all(any(c == d for d in digits) for c in task.format_input(x) if c != "."), (
            "a clue that is not in the text"
        )


def check_queens(task: Task, text: str, inputs: list[torch.Tensor]) -> None:
    """Assert that the boards have at most as many queens as the text has letters such as Q and numbers together."""
    queens = sum(int(task.board(x).sum()) for x in inputs)
    assert queens <= sum(c in "Qq1\u265b\u2655" for c in text) + len(re.findall(r"\d+", text))


def read_arc_folder(folder: Path, data: bytes) -> None:
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "a.json").write_bytes(data)
    (puzzle,) = read_folder(tasks, 30)
    counts = Counter(c for grid in (g for pair in puzzle.train for g in pair) for c in grid.ravel().tolist())
    counts_in_text = Counter(map(int, re.findall(r"\d", decode_text(data))))
    assert all(count <= counts_in_text[colour] for colour, count in counts.items())


@cache
def arc_task(folder: Path) -> Arc:
    (folder / "own").mkdir(exist_ok=True)
    (folder / "own" / "a.json").write_text(json.dumps(ARC))
    return Arc(ArcConfig(canvas=4, tasks="1", augmentations=0, files=str(folder / "own")))


def read_arc_text(folder: Path, data: bytes) -> None:
    task = arc_task(folder)
    for x in task.read_inputs(decode(data, "stdin")):
        assert task.parse(task.format_input(x)).equal(x)


def read_sudoku_csv(folder: Path, data: bytes) -> None:
    path = folder / "train.csv"
    path.write_bytes(data)
    puzzles = read_csv(path, 9)
    text = decode_text(data)
    for board, solution in zip(puzzles.boards, puzzles.solutions, strict=True):
        assert ((board == 0) | (board == solution)).all()
        assert "".join(map(str, solution)) in text


def read_idx(folder: Path, data: bytes) -> None:
    for name, read in (("train-images-idx3-ubyte", read_images), ("train-labels-idx1-ubyte", read_labels)):
        path = folder / name
        path.write_bytes(data)
        try:
            items = read(path)
        except InputError:
            continue
        with contextlib.suppress(OSError, EOFError):
            data = gzip.decompress(data)
        assert data.endswith(items.numpy().tobytes())
        return
    raise InputError("neither images nor labels")


def read_toml(folder: Path, data: bytes) -> None:
    (folder / "coloring.toml").write_bytes(data)
    config = read_preset(folder, "coloring", "cpu")
    text = decode_text(data)
    assert f"{config.train.batches}" in text.replace("_", "") or "batches" not in text


def read_results(folder: Path, data: bytes) -> None:
    path = folder / "results.json"
    path.write_bytes(data)
    assert read_json(path) == json.loads(decode_text(data))


def read_run_arguments(folder: Path, arguments: list[str]) -> None:
    config, _ = run.parse(arguments)
    assert config.names["task"] in arguments or any(word.endswith(config.names["task"]) for word in arguments)


def read_solve_arguments(folder: Path, arguments: list[str]) -> None:
    options = solve.make_parser().parse_args(arguments)
    solve.check_arguments(options)
    solve.parse_temper(options.temper, options.floor)


def puzzle_reader(name: str, check: Callable[..., None], *texts: str) -> tuple[Any, Any]:
    return damaged_texts(*texts), lambda folder, data: read_puzzles(TASKS[name], check, folder, data)


READERS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Path, Any], None]]] = {
    "graph6": puzzle_reader(
        "coloring", check_graphs, "GhCGKC\nGCR`v_", ">>graph6<<GCR`v_", nx.to_graph6_bytes(CYCLE).decode()
    ),
    "sparse6": puzzle_reader(
        "coloring",
        check_graphs,
        nx.to_sparse6_bytes(CYCLE).decode(),
        nx.to_sparse6_bytes(nx.path_graph(8), header=False).decode() * 2,
    ),
    "DIMACS": puzzle_reader("coloring", check_graphs, DIMACS, DIMACS * 2, DIMACS.replace("\n", "\r\n")),
    "Sudoku": puzzle_reader(
        "sudoku",
        check_clues,
        *(SUDOKU_4, SUDOKU_4_ROWS, SUDOKU_4_BOXES, f"{SUDOKU_4_ROWS}\n\n{SUDOKU_4_ROWS}", json.dumps([SUDOKU_4])),
        f"puzzle,solution\n{SUDOKU_4},3412124321344321",
    ),
    "queens": puzzle_reader(
        "nqueens",
        check_queens,
        *(QUEENS, QUEENS.replace("/", "\n"), "0 -1 4 -1 -1 -1 -1 -1", "Q7/8/4Q3/8/8/8/8/8 w - - 0 1"),
    ),
    "ARC folder": (damaged_texts(json.dumps(ARC)), read_arc_folder),
    "ARC text": (damaged_texts(json.dumps(ARC), json.dumps(ARC, indent=1), "[[3, 0]]"), read_arc_text),
    "CSV": (
        damaged_texts(
            f"question,answer,rating\n{SUDOKU_9},{GRID_9},3\n{SUDOKU_9},{GRID_9},3\n",
            f"puzzle,solution\n{SUDOKU_9},{GRID_9}\n",
        ),
        read_sudoku_csv,
    ),
    "IDX": (damaged_files(lambda: (IDX_IMAGES, IDX_LABELS)), read_idx),
    "TOML": (damaged_texts(PRESET), read_toml),
    "JSON": (damaged_texts(json.dumps({"a": [1, None, {"b": "c"}]}), "[]"), read_results),
    "run.py": (command_lines("--task", "coloring"), read_run_arguments),
    "solve.py": (command_lines("--checkpoint", "a.safetensors"), read_solve_arguments),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_inputs_are_read_or_refused_in_a_sentence(name: str, tmp_path: Path, capsys: Any) -> None:
    check_reader(*READERS[name], tmp_path, 12, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_hundred_damaged_inputs_are_read_or_refused_in_a_sentence(name: str, tmp_path: Path, capsys: Any) -> None:
    check_reader(*READERS[name], tmp_path, 100, capsys)


# ---- files that this project writes --------------------------------------------------------------------------------


def read_checkpoint(folder: Path, data: bytes) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    assert sum(1 for _ in load(path).model.parameters())


def read_state(folder: Path, data: bytes) -> None:
    path = folder / "state.safetensors"
    path.write_bytes(data)
    config = small_config()
    load_state(path, config, trainer_of(config))


def read_net_cdf(folder: Path, data: bytes) -> None:
    path = folder / "inference.nc"
    path.write_bytes(data)
    inference_data.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_checkpoint, read_state, read_net_cdf])
def test_a_hundred_damaged_files_of_this_project_are_read_or_refused(read, model_file, state_file, tmp_path, capsys):  # noqa: F811
    net_cdf = tmp_path / "intact.nc"
    inference_data.save(inference_data.from_groups({"posterior": {"a": np.zeros((1, 2))}}), net_cdf)
    data = {read_checkpoint: model_file, read_state: state_file, read_net_cdf: net_cdf}[read].read_bytes()
    folder = tmp_path / "damaged"
    folder.mkdir()
    check_reader(damaged_files(lambda: (data,)), read, folder, 100, capsys)
