"""Boards are read from text: all layouts give the same board, and a text that is not a board is refused."""

import json
import time

import pytest

from pyro_gram.errors import InputError
from pyro_gram.system.text import decode
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig
from pyro_gram.tasks.sudoku.task import Sudoku, SudokuConfig

BOARD_4 = ".412.2..21..432."
BOARD_6 = "1....6......2....4......3....5.6...."
QUEENS = "Q......./......../....Q.../......../......../......../......../........"
TASKS = {
    "4": Sudoku(SudokuConfig(size=4)),
    "6": Sudoku(SudokuConfig(size=6)),
    "9": Sudoku(SudokuConfig(size=9, source="generated")),
    "queens": NQueens(NQueensConfig()),
}


def rows(board, side=4):
    return [board[i : i + side] for i in range(0, len(board), side)]


def read(name, text):
    """Read the inputs in a text, and return them in the form in which the task writes inputs."""
    return [TASKS[name].format_input(x) for x in TASKS[name].read_inputs(text)]


def render_text(name, board, answer=None):
    """Return the picture that solve.py prints."""
    task = TASKS[name]
    x = task.parse(board)
    return task.render(x, None if answer is None else task.parse(answer))


# ---- Sudoku ------------------------------------------------------------------------------------------------------

SUDOKUS = {
    "one line": BOARD_4,
    "zeros": BOARD_4.replace(".", "0"),
    "other blanks": "*412_2--21??43x2".replace("x2", "2X"),
    "rows": "\n".join(rows(BOARD_4)),
    "rows with an empty line at the end": "\n".join(rows(BOARD_4)) + "\n\n",
    "rows of dashes for blanks": "\n".join(rows(BOARD_4.replace(".", "-"))),
    "cells separated by spaces": " ".join(BOARD_4),
    "cells by commas": ",".join(BOARD_4),
    "cells by commas, and one at the end": ",".join(BOARD_4) + ",",
    "cells by commas, all blanks empty, the last too": ",4,1,2\n,2,,\n2,1,,\n4,3,2,",
    "cells by tabs, blanks empty": "\t4\t1\t2\n\t2\t\t\n2\t1\t\t\n4\t3\t2\t",
    "spaces for blanks": BOARD_4.replace(".", " "),
    "rows with spaces for blanks": "\n".join(rows(BOARD_4.replace(".", " "))),
    "rows indented by a tab": "\n".join("\t" + row for row in rows(BOARD_4)),
    "an array as numpy prints it": "[[0 4 1 2]\n [0 2 0 0]\n [2 1 0 0]\n [4 3 2 0]]",
    "rows of a list of lists without its brackets": "[0,4,1,2],\n[0,2,0,0],\n[2,1,0,0],\n[4,3,2,0]",
    "CSV by semicolons": f"puzzle;solution\n{BOARD_4};3412124321344321\n",
    "cells by commas, blanks empty": ",".join(BOARD_4).replace(".", ""),
    "rows by semicolons": "\n".join(";".join(row) for row in rows(BOARD_4)),
    "rows by tabs": "\n".join("\t".join(row) for row in rows(BOARD_4)),
    "rows in words": " ".join(rows(BOARD_4)),
    "boxes drawn": ". 4 | 1 2\n. 2 | . .\n----+----\n2 1 | . .\n4 3 | 2 .",
    "boxes drawn without a cross": ".4|12\n.2|..\n-----\n21|..\n43|2.",
    "boxes drawn in as many dashes as a row has cells": ".412\n.2..\n----\n21..\n432.",
    "a frame": "+---+---+\n|.4 |12 |\n|.2 |.. |\n+---+---+\n|21 |.. |\n|43 |2. |\n+---+---+",
    "a frame of box characters": "│. 4│1 2│\n│. 2│. .│\n├──┼──┤\n" + "│2 1│. .│\n│4 3│2 .│",
    "a double frame": "╔═══╤═══╗\n║.4 │12 ║\n║.2 │.. ║\n╟───┼───╢\n║21 │.. ║\n║43 │2. ║\n╚═══╧═══╝",
    "boxes separated by empty lines": "\n".join(rows(BOARD_4)[:2]) + "\n\n" + "\n".join(rows(BOARD_4)[2:]),
    "cells in quotation marks": '"","4","1","2"\n"","2","",""\n"2","1","",""\n"4","3","2",""',
    "our picture": render_text("4", BOARD_4),
    "our picture, indented": "\n".join("    " + line for line in render_text("4", BOARD_4).split("\n")),
    "our picture with an answer": render_text("4", BOARD_4, "3412124321344321"),
    "JSON rows": json.dumps([[int(c) for c in row] for row in rows(BOARD_4.replace(".", "0"))]),
    "JSON null": json.dumps([[None if c == "." else int(c) for c in row] for row in rows(BOARD_4)]),
    "JSON texts": json.dumps(rows(BOARD_4)),
    "JSON text": json.dumps([BOARD_4]),
    "JSON cells": json.dumps([int(c) for c in BOARD_4.replace(".", "0")]),
    "JSON object": json.dumps({"id": 3, "Puzzle": BOARD_4, "solution": "3412124321344321"}),
    "JSON over lines": json.dumps([[int(c) for c in row] for row in rows(BOARD_4.replace(".", "0"))], indent=1),
    "a title": "# Puzzle\n" + "\n".join(rows(BOARD_4)),
    "comments before JSON": "# from a page\n" + json.dumps([BOARD_4]),
    "a comment in a CSV": f"# mine\npuzzle,solution\n# easy\n{BOARD_4},3412124321344321\n",
    "a header of one word": f"puzzle\n{BOARD_4}\n",
    "comments": f"# easy\n{BOARD_4}  # 9 clues\n#end",
    "CSV": f"puzzle,solution\n{BOARD_4},3412124321344321\n",
    "CSV with more columns": f'id,quizzes,note\n7,{BOARD_4},"a, b"\n',
    "CSV without header": f"{BOARD_4},3412124321344321",
    "hash and rating": f"0000183b305c {BOARD_4}  1.2",
    "full-width digits": BOARD_4.translate({ord("4"): 0xFF14, ord("2"): 0xFF12}),
    "no-break space": BOARD_4 + "\N{NO-BREAK SPACE}",
}


FILE_LAYOUTS = (  # layouts with a header or an answer: a file may have them, and a single input may not
    *("CSV by semicolons", "a comment in a CSV", "a header of one word", "CSV", "CSV with more columns"),
    "our picture with an answer",
)


def test_a_sudoku_is_read_in_every_layout():
    assert {layout: read("4", text) for layout, text in SUDOKUS.items()} == {layout: [BOARD_4] for layout in SUDOKUS}


def test_parse_accepts_every_layout_without_a_header():
    task = TASKS["4"]
    boards = {name: task.format_input(task.parse(text)) for name, text in SUDOKUS.items() if name not in FILE_LAYOUTS}
    assert boards == dict.fromkeys(boards, BOARD_4)
    assert len(boards) == len(SUDOKUS) - len(FILE_LAYOUTS)


TWO_SUDOKUS = ["...1..3..4......", BOARD_4]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(TWO_SUDOKUS),
        "\n".join(row for board in TWO_SUDOKUS for row in rows(board)),
        "\n\n".join("\n".join(rows(board)) for board in TWO_SUDOKUS),
        "\n\n".join(render_text("4", board) for board in TWO_SUDOKUS),
        "puzzle\n" + "\n\n".join(TWO_SUDOKUS),
        json.dumps(TWO_SUDOKUS),
        json.dumps([[list(row) for row in rows(board)] for board in TWO_SUDOKUS]),
        "\n".join(json.dumps({"question": board}) for board in TWO_SUDOKUS),
        TWO_SUDOKUS[0] + "\n" + "\n".join(rows(TWO_SUDOKUS[1])),
        "[Puzzle]\n"
        + "\n".join(rows(TWO_SUDOKUS[0]))
        + "\n[State]\n1234\n\n[Puzzle]\n"
        + "\n".join(rows(TWO_SUDOKUS[1])),
    ],
)
def test_several_sudokus_in_a_file_are_each_read(text):
    assert read("4", text) == TWO_SUDOKUS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_boards_in_other_encodings_are_read(encoding):
    assert read("4", decode("\r\n".join(rows(BOARD_4)).encode(encoding), "x")) == [BOARD_4]
    assert read("queens", decode(QUEENS.replace("Q", "♛").encode(encoding), "x")) == [QUEENS]


def test_spaces_stand_for_blanks_where_lines_have_as_many_signs_as_a_board_or_row():
    blank_row = "    \n21  \n4  1\n"  # an editor may have removed spaces from the ends of lines
    assert read("4", "1 3\n" + blank_row) == ["1.3.....21..4..1"]
    assert read("4", "1 3 \n" + blank_row + "\n" + "\n".join(rows(BOARD_4))) == ["1.3.....21..4..1", BOARD_4]
    assert read("4", BOARD_4.replace(".", " ") + "\n" + BOARD_4) == [BOARD_4] * 2
    assert read("6", "\n".join(rows(BOARD_6.replace(".", " "), 6))) == [BOARD_6]
    assert read("4", "\n".join(" ".join(row) for row in rows("1234341221434321"))) == ["1234341221434321"]


def test_boxes_of_six_and_nine_are_drawn_and_read():
    sudoku_9 = "2..1.5..3.54...71..1.2.3.8.6.28.73.4.........1.53.98.6.2.7.1.6..81...24.7..4.2..1"
    assert read("6", render_text("6", BOARD_6)) == [BOARD_6]
    assert read("9", render_text("9", sudoku_9)) == [sudoku_9]
    bands = [rows(sudoku_9, 9)[i : i + 3] for i in (0, 3, 6)]
    assert read("9", "\n\n".join("\n".join(band) for band in bands)) == [sudoku_9]
    assert read("9", "#AMe\n#DA puzzle\n" + "\n".join(rows(sudoku_9, 9))) == [sudoku_9]


MALFORMED_SUDOKUS = [
    (" 412 2  21  432", "spaces in the line are irregular"),
    ("\n".join(rows(BOARD_4)[:3]), "3 rows of 4 cells, and a 4x4 board has 4 rows of 4"),
    ("\n".join([*rows(BOARD_4), "...."]), "5 rows of 4 cells"),
    ("\n".join([*rows(BOARD_4), "", *rows(BOARD_4)[:3]]), "line 6: 3 rows of 4 cells"),
    (".DAB.B..BA..DCB.", "'D' is neither a digit nor a blank"),
    ("\n".join([".412", ".2..", "21a.", "432."]), "'a'.* is neither a digit nor a blank"),
    ("412221432", "9 cells .*and a 4x4 board has 16"),
    ("Puzzle\n" + "\n".join(rows(BOARD_4)), r"'P' \(row 1\) is neither a digit nor a blank"),
    (f"{BOARD_4} {BOARD_4}", "2 boards on one line"),
    ("." * 81, "the board is 9x9; this task has size = 4: no checkpoint here has this size; train one: python exp"),
    ("." * 36, "the board is 6x6; this task has size = 4: --checkpoint .*sudoku.safetensors solves size = 6"),
    ("\n".join(["......"] * 6), "the board is 6x6; this task has size = 4: --checkpoint"),
    ('{"puzzle": "' + BOARD_4, "begins like JSON but is not JSON"),
    ('{"a": 1}', "the JSON object has no 'question': give"),
    ("[[1, 2.5], [3, 4]]", "a list of whole numbers"),
    ("[[[[1]]]]", "a list of whole numbers"),
    ("# nothing", "no puzzle in the text"),
    ("-412\n----\n", "2 rows of 4 cells"),
    ("12..\n34..\n----\n21..\n", "3 rows of 4 cells"),  # a rule between boxes is not a row
    ("1234\n3412\n----\n2143\n", "3 rows of 4 cells"),
    (f"{BOARD_4}\n[Hard]\n{BOARD_4}", r"line 2: .*is neither a digit"),
    ("1 2 . .   . . 3 4\n3 4 . .   1 2 . .\n2 1 . .   . . . .\n4 3 . .   . . . .", "8 cells"),  # boards side by side
    (f"{BOARD_4} 12345678 1234", "more on the line than a board"),
    ('{"puzzle": "' + BOARD_4 + '", "Puzzle": "' + BOARD_4 + '"}', "has 'puzzle' and 'Puzzle'"),
    (f"{BOARD_4} 34..12..43..", "more on the line than a board, '34..12..43..'"),
    ("." * 16 + " " + "." * 45, "more on the line than a board"),
    (f"puzzle,solution\n{BOARD_4}," + "1" * 140_000, "more on the line than a board"),
    ('{"puzzle": "' + BOARD_4 + '", "grid": "' + BOARD_4 + '"}', "has 'puzzle' and 'grid'"),
]


def test_a_malformed_sudoku_is_refused_with_the_reason():
    for text, message in MALFORMED_SUDOKUS:
        with pytest.raises(InputError, match=message):
            read("4", text)


def test_a_board_with_boxes_of_another_shape_is_refused_with_the_right_shape():
    with pytest.raises(InputError, match=r"box 1 \(of 2 rows and 3 columns\) has 1 twice"):
        read("6", "12..56\n..1...\n...3..\n......\n......\n......")


def test_solutions_are_counted_up_to_a_limit():
    task = TASKS["4"]
    assert task.count_solutions(task.parse(BOARD_4)) == 2
    assert task.count_solutions(task.parse("." * 16)) == 288
    assert TASKS["6"].count_solutions(TASKS["6"].parse("." * 36)) is None


# ---- queens ------------------------------------------------------------------------------------------------------

LINES = QUEENS.split("/")
BOARDS = {
    "one line": QUEENS,
    "rows": "\n".join(LINES),
    "lower case": QUEENS.lower(),
    "spaces": "/".join(" ".join(row) for row in LINES),
    "rows with spaces": "\n".join(" ".join(row) for row in LINES),
    "underscores": "\n".join(" ".join(row) for row in LINES).replace(".", "_"),
    "dashes": "\n".join(LINES).replace(".", "-"),
    "chess symbols": QUEENS.replace("Q", "♕"),
    "0 and 1": "\n".join(LINES).replace(".", "0").replace("Q", "1"),
    "0 and 1 by commas": "\n".join(",".join(row) for row in LINES).replace(".", "0").replace("Q", "1"),
    "bars": "\n".join("|" + "|".join(row) + "|" for row in LINES),
    "FEN": "Q7/8/4Q3/8/8/8/8/8 w - - 0 1",
    "FEN without its tail": "Q7/8/4Q3/8/8/8/8/8",
    "columns from 0": "0 -1 4 -1 -1 -1 -1 -1",
    "columns from 0 in brackets": "[0, -1, 4, -1, -1, -1, -1, -1]",
    "columns from 0 in parentheses": "(0, -1, 4, -1, -1, -1, -1, -1)",
    "columns from 1": "1 0 5 0 0 0 0 0",
    "JSON matrix": json.dumps([[int(c == "Q") for c in row] for row in LINES]),
    "JSON rows": json.dumps(LINES),
    "JSON object": json.dumps({"board": QUEENS}),
    "JSON columns": "[0, -1, 4, null, null, -1, -1, -1]",
    "cells by commas, blanks are nothing": "\n".join(",".join(row) for row in LINES).replace(".", ""),
    "a matrix, one list on each line": "\n".join(str([int(c == "Q") for c in row]) for row in LINES),
    "our picture": render_text("queens", QUEENS),
    "our picture, indented": "\n".join("    " + line for line in render_text("queens", QUEENS).split("\n")),
}


def test_queens_are_read_in_every_layout():
    task = TASKS["queens"]
    assert {layout: read("queens", text) for layout, text in BOARDS.items()} == {layout: [QUEENS] for layout in BOARDS}
    boards = {layout: task.format_input(task.parse(text)) for layout, text in BOARDS.items()}
    assert boards == dict.fromkeys(BOARDS, QUEENS)


def test_a_full_list_of_columns_may_count_from_0_or_1():
    full_board = "Q......./....Q.../.......Q/.....Q../..Q...../......Q./.Q....../...Q...."
    assert read("queens", "[0,4,7,5,2,6,1,3]") == read("queens", "[1,5,8,6,3,7,2,4]") == [full_board]


def test_several_boards_of_queens_are_each_read():
    boards = [QUEENS, "......../" * 7 + "Q......."]
    for text in (
        "\n".join(boards),
        "\n\n".join(b.replace("/", "\n") for b in boards),
        boards[0] + "\n" + "[3" + ", 0" * 7 + "]",
    ):
        assert len(read("queens", text)) == 2
    assert read("queens", "\n".join(b.replace("/", "\n") for b in boards)) == boards


MALFORMED_QUEENS = [
    ("2 3 4 1 . . . .", "may be counted from 0 or from 1"),
    ("8 -1 . . . . . .", "counts columns in two ways"),
    ("0 0 . . . . . .", "counts columns in two ways"),
    ("0 0 0 1 0 0 0 0", "8 numbers of 0 and 1 are one row of a board"),
    ("Q.......\n" + "........\n" * 6 + "--------\n", "the board has 7 rows"),
    (",".join(["Q."] + ["."] * 7) + "\n" + "\n".join([",".join("........")] * 7), "this is no board: 'Q.,.,"),
    ("9 0 0 0 0 0 0 0", "column 9 lies outside the board"),
    ("0 -1 4 -1", "the board has 4 rows; this task has size = 8"),
    ("Q.......", "one row of 8 squares; give all rows"),
    ("hello world", "this is no board: 'hello world'"),
    ("Q....... .../8/8/8/8/8/8/8", "row 1 of the board has irregular spaces"),
    ("Q99999999/8/8/8/8/8/8/8", "row 1 of the board holds '9'"),
    ("QQ6/8/8/8/8/8/8/8", "row 1, column 1 and row 1, column 2 attack"),
    (
        "." * 10 + ("/" + "." * 10) * 9,
        "the board has 10 rows; .*--checkpoint .*nqueens.safetensors solves size = 10",
    ),
    ('{"x": 1}', "the JSON object has no 'board'"),
]


def test_a_malformed_board_of_queens_is_refused_with_the_reason():
    for text, message in MALFORMED_QUEENS:
        with pytest.raises(InputError, match=message):
            read("queens", text)


def test_json_rows_of_a_large_board_are_one_board():
    large_task = NQueens(NQueensConfig(size=16))
    board = ["." * 16] * 15 + ["Q" + "." * 15]
    (x,) = large_task.read_inputs(json.dumps(board))
    assert large_task.format_input(x) == "/".join(board)


def test_fen_of_ten_rows_has_numbers_of_two_digits():
    task_10 = NQueens(NQueensConfig(size=10))
    (x,) = task_10.read_inputs("10/Q9/10/10/10/10/10/10/10/10")
    assert task_10.format_input(x).split("/")[1] == "Q........."


@pytest.mark.parametrize("name", ["4", "queens"])
@pytest.mark.parametrize("text", ["-" * 100_000 + "x", "Q" + " " * 100_000 + "x", "\n" * 1_000_000 + "x"])
def test_huge_lines_and_huge_files_are_refused_soon(name, text):
    start = time.process_time()
    with pytest.raises(InputError):
        read(name, text)
    assert time.process_time() - start < 5


def test_completions_are_counted():
    task = TASKS["queens"]
    assert task.count_solutions(task.parse(QUEENS)) == 1
    assert task.count_solutions(task.parse("/".join(["." * 8] * 8))) == 92
    large_task = NQueens(NQueensConfig(size=13))
    assert large_task.count_solutions(large_task.parse("/".join(["." * 13] * 13))) is None
