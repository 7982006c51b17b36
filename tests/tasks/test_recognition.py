"""The task of a text is recognized by its notation: every file that a task reads, and no damaged Sudoku as queens."""

import random
from functools import cache

import networkx as nx
import pytest

from pyro_gram.errors import InputError
from pyro_gram.system.text import read_text
from pyro_gram.tasks.coloring.task import Coloring, ColoringConfig
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig
from pyro_gram.tasks.recognition import choose_task, puzzle_sizes, recognize
from pyro_gram.tasks.sudoku.task import Sudoku, SudokuConfig
from tests.conftest import ROOT

CASES = ROOT.parent / "shared" / "cases" / "inputs"
FILES = sorted(path.relative_to(CASES).as_posix() for path in CASES.rglob("*") if path.is_file())
BOARD_4 = ".412.2..21..432."
BOARD_9 = ".47.5....6.9.3.4..53..........9..6.....3.6.82.....5.4.79...4..64.37......56.9...."
SPARSE_9 = "4.....8.5.3..........7......2.....6.....8.4......1.......6.3.7.5..2.....1.4......"
QUEENS = "Q......./......../....Q.../......../......../......../......../........"
SOLUTIONS_8 = ([0, 4, 7, 5, 2, 6, 1, 3], [1, 3, 5, 7, 2, 0, 6, 4], [2, 0, 6, 4, 7, 1, 3, 5])
LATIN_5 = ("1.3..", "2....", "..4..", "....2", ".....")


@cache
def tasks():
    """Return tasks by their names, in the sizes of the files."""
    return [
        *(("coloring", Coloring(ColoringConfig(vertices=n))) for n in (8, 10, 11)),
        ("nqueens", NQueens(NQueensConfig())),
        *(("sudoku", Sudoku(SudokuConfig(size=size))) for size in (4, 6)),
        ("sudoku", Sudoku(SudokuConfig(size=9, source="generated"))),
    ]


def readers_of(text):
    """Return the names of the tasks that read a whole text."""
    names = set()
    for name, task in tasks():
        try:
            assert list(task.read_inputs(text))
            names.add(name)
        except InputError:
            pass
    return names


@pytest.mark.parametrize("file", FILES)
def test_every_file_that_a_task_reads_is_recognized_as_its_input(file):
    try:
        text = read_text(CASES / file)
    except InputError:
        pytest.skip("not a text")
    readers = readers_of(text)
    if readers:
        assert recognize(text) == sorted(readers)


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("col_nop.col", ["coloring"]),
        ("col_zero.col", ["coloring"]),
        ("big_road.gr", ["coloring"]),
        ("dot.dot", ["coloring"]),
        ("g6_column.g6", ["coloring"]),
        ("s6.s6", ["coloring"]),
        ("q_attack.txt", ["nqueens"]),
        ("s4_space.txt", ["sudoku"]),
        ("s6_box3x2.txt", ["sudoku"]),
        ("s6.sdk", ["sudoku"]),
        ("arc/bom/a.json", ["arc"]),
        ("arc/kaggle_challenges/arc-agi_training_challenges.json", ["arc"]),
        ("arc/readme/dataset_info.json", []),
    ],
)
@pytest.mark.skipif(not FILES, reason="the files are not here")
def test_a_faulty_file_goes_to_the_task_that_explains_the_fault(file, names):
    assert recognize(read_text(CASES / file)) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (nx.to_sparse6_bytes(nx.path_graph(8)).decode(), ["coloring"]),
        ("C~\nnot a graph\nCr", ["coloring"]),  # two of three can be read
        ("0 1\n1 2\n2 0", ["coloring"]),
        ("0,1\n1,2\n2,3", ["coloring"]),
        ("ann bob\nbob cy\ncy ann", ["coloring"]),
        ("0 1 {}\n1 2 {}\n7", ["coloring"]),
        ("GhCGKC 01.2.... colors=4", ["coloring"]),
        ("O?`D@?OcAa?O?G?@?CG_? 0..1............", ["coloring"]),  # sixteen clues are no board of 4x4
        ("c only a comment", ["coloring"]),
        ("04 12\n02 00\n21 00\n43 20", ["sudoku"]),  # boxes, not edges
        ("10 11\n11 12\n12 13\n13 10", ["coloring"]),
        ("10000000\n00001000" + "\n00000000" * 6, ["nqueens"]),
        ("[[1,0,0,0,0],[0,0,0,0,0],[0,0,0,0,0],[0,0,0,0,0],[0,0,0,0,0]]", ["nqueens"]),
        ("Q7/8/4Q3/8/8/8/8/8 w - - 0 1", ["nqueens"]),
        ("\n".join(map(str, SOLUTIONS_8)), ["nqueens"]),
        ("1 3 0 2", ["nqueens"]),
        ('{"columns": [0, -1, 4, -1, -1, -1, -1, -1]}', ["nqueens"]),
        ("........\n" * 8, ["nqueens"]),
        ("....\n" * 4, ["nqueens", "sudoku"]),
        ("1...\n..1.\n....\n....", ["nqueens", "sudoku"]),
        (" ".join(SPARSE_9), ["sudoku"]),
        ('{"puzzle": "' + BOARD_4 + '"}', ["sudoku"]),
        ("\n".join(LATIN_5), ["latin"]),
        ("1 2 3\n2 3 1\n. . .", ["latin"]),
        ("1.../..../..../....", ["latin", "nqueens"]),
        ("1..../...../...../...../.....", ["latin", "nqueens"]),
        ("0100/0001/1000/0010", ["nqueens"]),
        ("GCR`v_  # a comment", ["coloring"]),
        ("source,target\nBern,Paris\nParis,Rome # by train", ["coloring"]),
        ("".join(LATIN_5), ["latin"]),
        ("/".join(LATIN_5), ["latin"]),
        ("1.34/..../...2/....", ["latin"]),
        ("1.33/..../...2/....", ["latin"]),
        ("1234567.\n" + "........\n" * 7, ["latin"]),
        ("11...\n.234.\n.....\n.....\n.....", ["sudoku"]),  # no Latin square: a damaged board of digits
        ("hello world", []),
        ("?!", []),
        ("[1, 2", []),
        ("", []),
        ('{"board": [[0, 4, 1, 2], [0, 2, 0, 0], [2, 1, 0, 0], [4, 3, 2, 0]], "from": "a/b"}', ["sudoku"]),
    ],
)
def test_notations_are_told_apart(text, names):
    assert recognize(text) == names


def damage(text, rng):
    """Remove, replace or insert a character or line, or cut the text off."""
    position, lines = rng.randrange(len(text)), text.split("\n")
    line = rng.randrange(len(lines))
    return rng.choice(
        [
            text[:position] + text[position + 1 :],
            text[:position] + rng.choice("0123456789.x -,\n") + text[position + 1 :],
            text[:position] + rng.choice("0123456789. ,\n") + text[position:],
            "\n".join(lines[:line] + lines[line + 1 :]) or text[:-1],
            text[: max(20, position)],
        ]
    )


def layouts(board, size):
    rows = [board[i : i + size] for i in range(0, len(board), size)]
    for blank in ".0_-x":
        for separator in ("", " ", ","):
            yield "\n".join(separator.join(row.replace(".", blank)) for row in rows)
            yield separator.join(board.replace(".", blank))


def test_no_damaged_sudoku_is_taken_for_queens():
    rng = random.Random(0)
    recognized = []
    for board, size in ((BOARD_4, 4), (BOARD_9, 9), (SPARSE_9, 9)):
        for text in layouts(board, size):
            assert recognize(text) == ["sudoku"], text
            for _ in range(6):
                damaged_text = damage(text, rng)
                names = recognize(damaged_text)
                assert names in (["sudoku"], ["nqueens", "sudoku"]), damaged_text
                recognized.append(names)
    assert recognized.count(["sudoku"]) > 0.8 * len(recognized)


def test_sizes_are_those_of_the_puzzles():
    assert puzzle_sizes("coloring", "C~\nDQc\n!!") == [4, 5]
    assert puzzle_sizes("coloring", "p edge 3000000 58333344\na 1 2 803") == [3000000]
    assert puzzle_sizes("nqueens", QUEENS) == [8]
    assert puzzle_sizes("nqueens", "QQ../..../..../....") == [4]  # known, though the queens attack each other
    assert puzzle_sizes("sudoku", f"{BOARD_4}\n{BOARD_9}") == [4, 9]
    assert puzzle_sizes("mnist", BOARD_4) == []


def test_an_unclear_text_is_refused_with_the_options_that_decide():
    assert choose_task(BOARD_4, "a.txt") == "sudoku"
    for text, message in (
        ("....\n" * 4, "a.txt may be a puzzle of nqueens or sudoku: decide with --task or --checkpoint"),
        ("hello world", "a.txt is of no notation that is recognized .*--task or --checkpoint"),
        ("# a comment", "there is no puzzle"),
    ):
        with pytest.raises(InputError, match=message):
            choose_task(text, "a.txt")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("11..\n..3.\n....\n....", "sudoku"),  # a clue twice in a row
        ("...\n...\n...", "nqueens"),  # too small
        ("11..\n....\n....\n....", "nqueens"),  # two queens in a row
        ("0 1 0.5\n1 2 1.5", "coloring"),  # weights
    ],
)
def test_a_faulty_puzzle_is_taken_for_what_it_resembles(text, name):
    assert recognize(text) == [name]


def test_a_long_text_is_recognized_by_its_beginning():
    assert recognize((BOARD_9 + "\n") * 200_000) == ["sudoku"]
    assert recognize("p edge 3 2\n" + "e 1 2\n" * 300_000) == ["coloring"]
