"""Read CSV files of Sudoku in several encodings, with different headers, columns and ratings."""

import gzip

import numpy as np
import pytest

from pyro_gram.errors import InputError
from pyro_gram.tasks.sudoku import data as sudoku_data
from pyro_gram.tasks.sudoku.data import columns_of, read_csv
from tests.tasks.sudoku_cases import ANSWER, QUESTION

ZEROS = QUESTION.replace(".", "0")
TABLE = f"source,question,answer,rating\nkaggle,{QUESTION},{ANSWER},22\n"


def read(tmp_path, text, encoding="utf-8", name="a.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_csv(path, 9)


def check_copies(puzzles, count=1):
    """Assert that ``puzzles`` are ``count`` copies of the example puzzle."""
    assert ["".join(map(str, board)) for board in puzzles.boards] == [ZEROS] * count
    assert ["".join(map(str, board)) for board in puzzles.solutions] == [ANSWER] * count


@pytest.mark.parametrize(
    ("encoding", "end"), [("utf-8", "\r"), ("utf-8-sig", "\n"), ("utf-16", "\r\n"), ("utf-32", "\n")]
)
def test_a_file_is_the_same_in_every_encoding(tmp_path, encoding, end):
    puzzles = read(tmp_path, TABLE.replace("\n", end), encoding)
    check_copies(puzzles)
    assert puzzles.ratings.tolist() == [22]


def test_a_byte_order_mark_between_joined_files_is_dropped(tmp_path):
    check_copies(read(tmp_path, b"\xef\xbb\xbf\xef\xbb\xbf" + TABLE.encode()))


@pytest.mark.parametrize(("name", "is_gzip"), [("a.csv", True), ("a.csv.gz", True), ("a.csv.gz", False)])
def test_gzip_is_detected_by_the_contents(tmp_path, name, is_gzip):
    check_copies(read(tmp_path, gzip.compress(TABLE.encode("utf-16")) if is_gzip else TABLE, name=name))


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (["question", "answer"], (0, 1, None)),
        (["quizzes", "solutions"], (0, 1, None)),
        (["id", "puzzle", "solution", "clues", "difficulty"], (1, 2, 4)),
        ([" Answer ", "RATING", "Puzzle"], (2, 0, 1)),
        (["puzzle", "question", "answer"], (1, 2, None)),
        (["question", "rating"], None),
        (["answer"], None),
        ([], None),
    ],
)
def test_columns_are_identified_by_their_names(header, columns):
    assert columns_of(header) == columns


@pytest.mark.parametrize(
    "text",
    [
        f"quizzes,solutions\n{ZEROS},{ANSWER}\n",
        f"puzzle,solution\n{QUESTION},{ANSWER}",
        f"Question, Answer \n {QUESTION} ,\t{ANSWER} \n",
        f'"Question", "Answer"\n"{QUESTION}", "{ANSWER}"\n',
        f"\n\nid,solution,puzzle,clues\n1,{ANSWER},{QUESTION},30\n,,,\n\n",
        f"question;answer\n{QUESTION};{ANSWER}\n",
        f"question\tanswer\n{QUESTION}\t{ANSWER}\n",
        f"question,answer\n{QUESTION.replace('.', '_')},{ANSWER}\n",
        f"{QUESTION},{ANSWER}\n",
        f"\n{ANSWER},{ZEROS}\n",
        f"7,{QUESTION},{ANSWER},2.2\n",
    ],
)
def test_headers_columns_and_spaces_may_differ(tmp_path, text):
    puzzles = read(tmp_path, text)
    check_copies(puzzles)
    assert puzzles.ratings is None


@pytest.mark.parametrize(
    ("ratings", "expected", "kind"),
    [
        (("2.2", "0.0"), [2.2, 0.0], "f"),
        (("7", "2.0"), [7, 2], "i"),
        ((" 1e2 ", "3"), [100, 3], "i"),
        (("", "2.5"), [np.nan, 2.5], "f"),
        (("", "4"), [np.nan, 4], "f"),
        (("", ""), None, None),
    ],
)
def test_ratings_may_have_a_point_or_be_empty(tmp_path, ratings, expected, kind):
    rows = "".join(f"{rating},{QUESTION},{ANSWER}\n" for rating in ratings)
    puzzles = read(tmp_path, "difficulty,puzzle,solution\n" + rows)
    check_copies(puzzles, 2)
    if expected is None:
        assert puzzles.ratings is None
    else:
        np.testing.assert_array_equal(puzzles.ratings, expected)
        assert puzzles.ratings.dtype.kind == kind
        np.testing.assert_array_equal(puzzles.take(np.array([1])).ratings, expected[1:])


@pytest.mark.parametrize("rating", ["hard", "2.2.2", "1_000", "٣", "--1", "nano", "0x1"])
def test_an_error_names_a_rating_that_is_not_a_number(tmp_path, rating):
    with pytest.raises(InputError, match="a.csv, line 2: the rating .* is no number"):
        read(tmp_path, f"question,answer,rating\n{QUESTION},{ANSWER},{rating}\n")


@pytest.mark.parametrize("start", ["question,answer\n", "\n\n question , answer\n", ""])
@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_an_error_names_the_line_of_the_first_fault(tmp_path, monkeypatch, start, chunk):
    monkeypatch.setattr(sudoku_data, "ROWS_AT_ONCE", chunk)
    intact_row, faulty_row = f"{QUESTION},{ANSWER}\n", f"{QUESTION},{ANSWER[:-1]}9\n"
    line = start.count("\n") + 4
    with pytest.raises(InputError, match=f"a.csv, line {line}: the answer repeats a digit"):
        read(tmp_path, f"{start}{intact_row}{intact_row}\n{faulty_row}{intact_row}short,row\n")
    with pytest.raises(InputError, match=f"a.csv, line {line}: 3 fields, but the (header|first row) has 2"):
        read(tmp_path, f"{start}{intact_row}{intact_row}\n{intact_row[:-1]},3\n{faulty_row}")


def test_a_character_of_another_alphabet_is_no_blank(tmp_path):
    with pytest.raises(InputError, match="line 2: the question has a character that is neither a digit"):
        read(tmp_path, f"question,answer\n{QUESTION[:-1]}\N{FULLWIDTH DIGIT FOUR},{ANSWER}\n")


def test_an_error_names_a_board_of_another_size_without_a_header(tmp_path):
    with pytest.raises(InputError, match="a.csv, line 1: the question has 16 characters, not 81"):
        read(tmp_path, "0010000402400421,4312213412433421\n")


def test_an_error_names_a_quote_that_never_ends(tmp_path):
    with pytest.raises(InputError, match="a.csv, line .*field larger than"):
        read(tmp_path, f'question,answer\n"{QUESTION},{ANSWER}\n' + f"{QUESTION},{ANSWER}\n" * 1000)
