"""Latin squares with blanks: uniform squares, all completions, sizes in one model, symmetries and texts."""

import copy
import itertools
import pickle
from functools import cache

import pytest
import torch

from pyro_gram.build import build
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.jacobson_matthews import random_latin_squares
from pyro_gram.tasks.latin import Latin, LatinConfig, relations
from tests.conftest import build_small, small_config

SPLITS = ("train", "validation", "test")


@cache
def make(**changes) -> Latin:
    """Return a task that tests share; no test may change it."""
    return Latin(LatinConfig(**{"size": 5, "min_size": 4, "train": 60, "validation": 10, "test": 20, **changes}))


def rows_of(x, y):
    """Return an input's size, and its digits and those of an answer as nested lists, 0 for a blank."""
    size = round(int((x != 0).sum()) ** 0.5)
    return size, *(t[: size**2].view(size, size).tolist() for t in (x - 1, y + 1))


def brute_force(rows):
    """Return all completions of nested lists, found by trying every permutation in each row."""
    size = len(rows)
    squares = [()]
    for row in rows:
        permutations = torch.tensor(list(itertools.permutations(range(1, size + 1))))
        clues = torch.tensor(row)
        fitting = permutations[((clues == 0) | (clues == permutations)).all(1)]
        squares = [(*s, p) for s in squares for p in fitting if not any((p == q).any() for q in s)]
    return {tuple(torch.cat(square).tolist()) for square in squares}


# ---- random squares --------------------------------------------------------------------------------------------------


def test_random_squares_of_size_4_are_uniform():
    squares = random_latin_squares(4, 57_600, torch.Generator().manual_seed(0))
    distinct, counts = squares.unique(dim=0, return_counts=True)
    assert len(distinct) == 576
    statistic = ((counts - 100.0) ** 2 / 100).sum()  # chi-squared, 575 degrees of freedom: sd sqrt(2 * 575) = 34
    assert statistic < 575 + 4 * 34


def test_both_classes_of_squares_of_size_5_are_as_frequent_as_they_should_be():
    squares = random_latin_squares(5, 10_000, torch.Generator().manual_seed(0)).view(-1, 5, 5)
    lines = torch.arange(1, 6)
    assert (squares.sort(1)[0] == lines[:, None]).all()
    assert (squares.sort(2)[0] == lines).all()
    has_subsquare = torch.zeros(len(squares), dtype=torch.bool)
    for a, b in itertools.combinations(range(5), 2):
        for c, d in itertools.combinations(range(5), 2):
            has_subsquare |= (squares[:, a, c] == squares[:, b, d]) & (squares[:, a, d] == squares[:, b, c])
    # Of the 161,280 squares, the 17,280 that are isotopic to the cyclic group have no subsquare of size 2.
    share = 17_280 / 161_280
    assert (~has_subsquare).double().mean() == pytest.approx(share, abs=4 * (share * (1 - share) / 10_000) ** 0.5)


def test_the_test_of_uniformity_can_fail():
    squares = random_latin_squares(4, 57_600, torch.Generator().manual_seed(0), moves=4)
    counts = squares.unique(dim=0, return_counts=True)[1]
    assert ((counts - 100.0) ** 2 / 100).sum() > 5000


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_every_completion_is_listed_and_inputs_are_padded():
    task = make()
    puzzles = task.split("train")
    assert puzzles.has_all_solutions
    assert puzzles.num_solutions.max() > 1
    assert puzzles.inputs.shape == (60, 25)
    assert sorted(task.spec.sizes_of(puzzles.inputs).unique().tolist()) == [16, 25]
    for i, x in enumerate(puzzles.inputs):
        solutions = puzzles.solutions_of(i)
        size, board, _ = rows_of(x, solutions[0])
        cells = size**2
        assert (x[cells:] == 0).all()
        assert (solutions[:, cells:] == 0).all()
        listed = {tuple(row) for row in (solutions[:, :cells] + 1).tolist()}
        assert len(listed) == len(solutions) <= task.config.max_solutions
        assert listed == brute_force(board)
        assert task.is_valid(x, solutions).all()
        assert task.count_solutions(x) == len(solutions)


def test_splits_have_the_requested_sizes_and_follow_their_seed():
    task = make()
    assert [len(task.split(name)) for name in SPLITS] == [60, 10, 20]
    sizes = task.spec.sizes_of(task.split("test").inputs)
    assert (sizes == 16).sum() == (sizes == 25).sum() == 10
    assert len(sizes[:10].unique()) == 2  # in random order
    assert torch.equal(Latin(task.config).split("test").inputs, task.split("test").inputs)
    assert not torch.equal(make(data_seed=1).split("test").inputs, task.split("test").inputs)
    with pytest.raises(ConfigError, match="holdout"):
        task.split("holdout")


def canonical_form(x):
    """Return the smallest of all images of an input of size 4: rows and columns permuted or swapped, digits renamed."""
    board = (x[:16] - 1).view(4, 4)
    images = []
    for square in (board, board.T):
        for rows, columns in itertools.product(itertools.permutations(range(4)), repeat=2):
            names = {0: 0}
            cells = square[list(rows)][:, list(columns)].flatten().tolist()
            images.append(tuple(names.setdefault(d, len(names)) for d in cells))
    return min(images)


def test_no_input_is_symmetric_to_an_input_of_another_split():
    task = make(size=4, min_size=0, train=40, validation=10, test=20, max_blanks=0.5)
    forms = [set(map(canonical_form, task.split(name).inputs)) for name in SPLITS]
    for a, b in itertools.combinations(forms, 2):
        assert not a & b


def test_too_few_inputs_of_a_size_are_an_error():
    with pytest.raises(ConfigError, match="too few squares of 3x3 for 2030 inputs .* raise task.min_size"):
        Latin(LatinConfig(size=3, train=2000, validation=10, test=20)).split("train")
    with pytest.raises(ConfigError, match="too few squares of 6x6"):
        Latin(LatinConfig(min_blanks=1.0, max_blanks=1.0)).split("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 2}, "size must"),
        ({"size": 10}, "size must"),
        ({"min_size": 7}, "min_size must"),
        ({"min_size": 2}, "min_size must"),
        ({"min_blanks": 0.8}, "max_blanks must"),
        ({"max_blanks": 1.5}, "max_blanks must"),
        ({"max_solutions": 0}, "max_solutions must"),
        ({"min_size": 4, "validation": 2}, "validation must be at least 3"),
        ({"data_seed": -1}, "data_seed"),
    ],
)
def test_errors_name_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        LatinConfig(**settings)


# ---- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [5, 4])
def test_the_structure_follows_the_size_of_each_input(lines):
    task = make()
    x = torch.stack([task.parse("1234/..../..../...."), task.parse("12345/...../...../...../.....")])[: lines - 3]
    x, _ = task.spec.crop(x, x)
    structure = pickle.loads(pickle.dumps(copy.deepcopy(task.spec.structure)))(x)
    assert structure.relations.shape == (len(x), task.spec.relations, x.shape[1], x.shape[1])
    for i, tokens in enumerate(x):
        size = (4, 5)[i]
        inside = torch.arange(x.shape[1]) < size**2
        assert inside.all() if structure.mask is None else torch.equal(structure.mask[i], inside)
        for a, b in itertools.product(range(x.shape[1]), repeat=2):
            expected = [a // size == b // size, a % size == b % size, True]
            if not (inside[a] and inside[b]):
                expected = [a == b] * 3
            assert structure.relations[i, :, a, b].tolist() == expected
        for cell, token in enumerate(tokens.tolist()):
            expected = {0: [0], 1: list(range(size))}.get(token, [token - 2])
            assert structure.values[i, cell].nonzero().flatten().tolist() == expected
    assert torch.equal(structure.tokens, x)


def test_squares_of_one_size_need_no_mask_and_take_any_mixer():
    task = make(min_size=0)
    assert task.spec.padding is None
    x = task.split("test").inputs.view(2, 10, 25)
    structure = task.spec.structure(x)
    assert structure.mask is None
    assert torch.equal(structure.relations, relations(5)[None, None])
    assert structure.values.shape == (2, 10, 25, 5)
    for mixer in ("attention", "relations"):
        parts = {"task": {"size": 5, "train": 40}, "model": {"mixer": mixer, "heads": 4}}
        solver = build_small(task_name="latin", **parts)
        assert solver.sample(x[0, :2], num_samples=3, depth=2).tokens.shape == (3, 2, 25)


def test_a_model_of_several_sizes_keeps_givens_and_padding():
    parts = {"task": {"size": 5, "min_size": 4}, "model": {"mixer": "relations", "heads": 4}}
    solver = build(small_config(task_name="latin", **parts))
    x = solver.task.split("test").inputs
    y = solver.sample(x, num_samples=4, depth=2).tokens
    assert ((x < 2) | (y == x - 2)).all()
    assert (y[:, x == 0] == 0).all()
    size = solver.task.spec.sizes_of(x).sqrt()
    assert (y < size[:, None]).all()


# ---- right answers and symmetries ------------------------------------------------------------------------------------


def test_violations_agree_with_counting_by_hand():
    task = make()
    puzzles = task.split("test")
    generator = torch.Generator().manual_seed(0)
    y = puzzles.sample_targets(torch.arange(20), generator).repeat(3, 1, 1)
    is_changed = (torch.rand(y.shape, generator=generator) < 0.2) & (puzzles.inputs > 0)
    y = torch.where(is_changed, torch.randint(5, y.shape, generator=generator), y)
    violations = task.violations(puzzles.inputs, y)
    assert (violations == 0).any()
    for n, i in itertools.product(range(3), range(20)):
        size, board, answer = rows_of(puzzles.inputs[i], y[n, i])
        lines = [*answer, *zip(*answer, strict=True)]
        expected = sum(len(set(range(1, size + 1)) - set(line)) for line in lines)
        expected += sum(digit > size for row in answer for digit in row)
        expected += sum(a not in (0, b) for r, s in zip(board, answer, strict=True) for a, b in zip(r, s, strict=True))
        assert violations[n, i] == expected


def test_cropped_inputs_have_the_same_violations_and_an_answer_at_padding_is_one():
    task = make()
    puzzles = task.split("test")
    is_small = task.spec.sizes_of(puzzles.inputs) == 16
    x, y = puzzles.inputs[is_small], puzzles.sample_targets(torch.arange(20), torch.Generator())[is_small]
    y = y.roll(1, -1) * (x > 0)
    cropped_x, cropped_y = task.spec.crop(x, y)
    assert cropped_x.shape[1] == 16
    assert torch.equal(task.violations(x, y), task.violations(cropped_x, cropped_y))
    assert task.format_solution(cropped_x[0], cropped_y[0]) == task.format_solution(x[0], y[0])
    y = task.split("test").sample_targets(torch.arange(20), torch.Generator())[is_small]
    y[:, 20] = 1
    assert (task.violations(x, y) == 1).all()


def test_augmentation_is_a_symmetry_of_each_size():
    task = make()
    puzzles = task.split("train")
    y = puzzles.sample_targets(torch.arange(60), torch.Generator().manual_seed(0))
    x2, y2 = task.augment(puzzles.inputs, y, torch.Generator().manual_seed(1))
    assert task.is_valid(x2, y2).all()
    assert torch.equal(task.spec.sizes_of(x2), task.spec.sizes_of(puzzles.inputs))
    assert torch.equal((x2 == 1).sum(1), (puzzles.inputs == 1).sum(1))
    assert (x2 != puzzles.inputs).any(1).float().mean() > 0.9
    is_given = x2 > 1
    assert torch.equal(x2[is_given] - 2, y2[is_given])
    shaped = task.augment(puzzles.inputs.view(3, 20, 25), y.view(3, 20, 25), torch.Generator().manual_seed(1))
    assert torch.equal(shaped[0].flatten(0, 1), x2)
    assert torch.equal(shaped[1].flatten(0, 1), y2)


def test_augmentation_reaches_every_image():
    task = make()
    x, y = task.parse("12../..../..../...."), task.parse("1234/2143/3412/4321") - 2
    x, y = (t.expand(20_000, -1) for t in (x, y.clamp(min=0)))
    x2, y2 = task.augment(x, y, torch.Generator().manual_seed(0))
    # The two givens stand in one row or in one column, and have different digits: 2 * 4 * 6 places, 4 * 3 digits.
    assert len(x2.unique(dim=0)) == 2 * 4 * 6 * 12
    assert task.is_valid(x2, y2).all()


def test_augmentation_gives_no_held_out_input():
    task = Latin(make().config)
    x, y = task.split("test").inputs[:1].expand(300, -1), task.split("test").solutions[:1].expand(300, -1)
    images, _ = task.augment(x, y, torch.Generator().manual_seed(0))
    held_out = images[(images != x[0]).any(1)][:1]
    task._held_out._hashes = task._held_out._hash(held_out)
    new_x, new_y = task.augment(x, y, torch.Generator().manual_seed(0))
    assert (images == held_out).all(1).any()
    assert not (new_x == held_out).all(1).any()
    assert task.is_valid(new_x, new_y).all()
    cropped_x, cropped_y = task.spec.crop(x, y)
    assert task.augment(cropped_x, cropped_y, torch.Generator().manual_seed(0))[0].shape == cropped_x.shape


# ---- text and picture ------------------------------------------------------------------------------------------------


def test_texts_round_trip():
    task = make()
    puzzles = task.split("test")
    for i, x in enumerate(puzzles.inputs):
        text = task.format_input(x)
        for form in (text, text.replace("/", "\n"), text.replace("/", ""), text.replace(".", "0")):
            assert torch.equal(task.parse(form), x)
        y = puzzles.solutions_of(i)[0]
        assert torch.equal(task.parse(task.format_solution(x, y)), torch.where(x > 0, y + 2, 0))
    for separator in ("\n", "\n\n"):
        texts = separator.join(map(task.format_input, puzzles.inputs))
        assert torch.equal(torch.stack(list(task.read_inputs(texts))), puzzles.inputs)
    boards = "\n\n".join(task.format_input(x).replace("/", "\n") for x in puzzles.inputs)
    assert torch.equal(torch.stack(list(task.read_inputs(boards))), puzzles.inputs)


def test_the_tokens_of_smaller_squares_need_no_padding():
    task = {"size": 5, "min_size": 4, "train": 60, "validation": 10, "test": 20}
    solver = build_small(task_name="latin", task=task, model={"mixer": "relations", "heads": 4})
    x = solver.task.split("test").inputs
    small = x[solver.task.spec.sizes_of(x) == 16][:2]
    short, long = (solver.sample(tokens, num_samples=3).tokens for tokens in (small[:, :16], small))
    assert torch.equal(short[..., :16], long[..., :16])
    with pytest.raises(InputError, match="17 tokens that are not padding are no board"):
        solver.sample(torch.ones(1, 17, dtype=torch.long))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty input"),
        ("12/..", "2x2; this task has sizes 4 to 5"),
        ("......./" * 6 + ".......", "7x7; this task has sizes 4 to 5: no checkpoint here .* train one"),
        ("é234/..../..../....", "'é' is neither a digit nor a blank"),
        ("1234/..../....", "of together 12 cells"),
        ("1234/...../.../....", "give n rows of n cells"),
        ("5.../..../..../....", "the digit 5 does not belong on a 4x4 board"),
        ("1..1/..../..../....", "row 1 has 1 twice"),
        (".1../..../.1../....", "column 2 has 1 twice"),
        ("123./...4/..../....", "has no solution"),
    ],
)
def test_each_kind_of_bad_input_has_its_own_message(text, message):
    with pytest.raises(InputError, match=message):
        make().parse(text)


def test_a_picture_marks_mistakes_and_has_no_boxes():
    from matplotlib.figure import Figure

    task = make()
    x = task.parse("12../..../..../....")
    y = torch.tensor([1, 1, 2, 3, 1, 0, 3, 2, 2, 3, 0, 1, 3, 2, 1, 0, *[0] * 9])  # the given 1 has become 2
    rendering = task.render(x, y).splitlines()
    assert len(rendering) == 4
    assert rendering[0].endswith("2!2!3 4 ")
    assert rendering[1].endswith("2!1 4 3 ")
    axes = Figure().subplots()
    task.plot(axes, x, y)
    assert len(axes.texts) == 16
