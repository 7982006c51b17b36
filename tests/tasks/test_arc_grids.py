import itertools

import numpy as np
import pytest
import torch

from pyro_gram.tasks.arc import grids
from pyro_gram.tasks.arc.grids import Augmentation

RNG = np.random.default_rng(0)


def random_grid(rows, columns):
    return RNG.integers(0, 10, (rows, columns)).astype(np.uint8)


def as_square(tokens, canvas):
    return tokens.unflatten(-1, (canvas, canvas))


def every_shape(canvas):
    return [random_grid(r, c) for r, c in itertools.product(range(1, canvas + 1), repeat=2)]


@pytest.mark.parametrize("canvas", [1, 4, 7])
def test_a_grid_of_any_shape_is_read_back_from_the_canvas(canvas):
    shapes = every_shape(canvas)
    tokens = as_square(grids.encode(shapes, canvas), canvas)
    cells, size = grids.crop(tokens, grids.origin_of(tokens))
    for grid, c, s in zip(shapes, cells, size, strict=True):
        assert np.array_equal(grids.to_grid(c, s), grid)


def test_the_canvas_is_that_of_trm():
    tokens = as_square(grids.encode([np.array([[0, 9]], dtype=np.uint8)], 4), 4)[0]
    assert tokens.tolist() == [[2, 11, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    shifted_tokens = grids.place(tokens * (tokens > 1), torch.tensor([1, 2]), torch.tensor([2, 1]))
    assert shifted_tokens.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 2, 11, 1], [0, 1, 1, 0]]


def test_markers_beyond_the_canvas_are_left_out():
    full_canvases = as_square(grids.encode([random_grid(3, 3), random_grid(3, 2)], 3), 3)
    assert (full_canvases[0] > 1).all()
    assert full_canvases[1, :, 2].tolist() == [1, 1, 1]


def test_a_grid_is_read_at_every_offset():
    canvas = 4
    for grid in every_shape(canvas):
        cells = as_square(grids.encode([grid], canvas), canvas)
        cells, size = grids.crop(cells, torch.zeros(1, 2, dtype=torch.long))
        for offset in itertools.product(range(canvas - grid.shape[0] + 1), range(canvas - grid.shape[1] + 1)):
            canvas_tokens = grids.place(cells, size, torch.tensor([offset]))
            assert grids.origin_of(canvas_tokens).tolist() == [list(offset)]
            cropped_cells, cropped_size = grids.crop(canvas_tokens, torch.tensor([offset]))
            assert torch.equal(cropped_cells, cells)
            assert torch.equal(cropped_size, size)


def test_cropping_takes_the_largest_rectangle_of_colors_as_trm_does():
    def brute_force(tokens):
        largest_area, size = 0, (0, 0)
        for r, c in itertools.product(range(1, 6), repeat=2):
            if (tokens[:r, :c] > 1).all() and r * c > largest_area:
                largest_area, size = r * c, (r, c)
        return size

    tokens = torch.from_numpy(RNG.choice([0, 1, 2, 5], (100, 5, 5), p=[0.1, 0.1, 0.4, 0.4]))
    tokens[:, 0, 0] = 2
    _, size = grids.crop(tokens, torch.zeros(100, 2, dtype=torch.long))
    for t, s in zip(tokens, size.tolist(), strict=True):
        r, c = brute_force(t.numpy())
        assert s[0] * s[1] == r * c > 0
        assert (t[: s[0], : s[1]] > 1).all()


def test_a_canvas_without_a_color_at_the_corner_shows_no_grid():
    tokens = as_square(grids.encode([random_grid(2, 2)], 3), 3)
    tokens[0, 0, 0] = grids.EOS
    cells, size = grids.crop(tokens, torch.zeros(1, 2, dtype=torch.long))
    assert size.tolist() == [[0, 0]]
    assert not cells.any()
    assert grids.to_grid(cells[0], size[0]) is None


@pytest.mark.parametrize("transform", range(grids.TRANSFORMS))
def test_every_transform_is_undone_by_its_inverse(transform):
    inverse = int(grids.INVERSE[transform])
    for grid in every_shape(4):
        assert np.array_equal(grids.apply_transform(grids.apply_transform(grid, transform), inverse), grid)
        assert np.array_equal(grids.apply_transform(grids.apply_transform(grid, inverse), transform), grid)


def test_the_eight_transforms_are_the_symmetries_of_a_square():
    grid = random_grid(3, 5)
    image_keys = {grids.grid_key(grids.apply_transform(grid, t)) for t in range(8)}
    assert image_keys == {grids.grid_key(np.rot90(g, k)) for g in (grid, grid.T) for k in range(4)}
    assert len(image_keys) == 8


def test_turning_many_grids_at_once_agrees_with_one_at_a_time():
    canvas = 5
    shapes = every_shape(canvas) * 8
    versions = [Augmentation(i % 8, (0, *(1 + RNG.permutation(9)).tolist())) for i in range(len(shapes))]
    tokens = as_square(grids.encode(shapes, canvas), canvas)
    cells, size = grids.crop(tokens, torch.zeros(len(shapes), 2, dtype=torch.long))
    transform = torch.tensor([v.transform for v in versions])
    colors = torch.tensor([v.colors for v in versions])
    images, image_size = grids.turn(cells, size, transform, colors)
    for i, (grid, version) in enumerate(zip(shapes, versions, strict=True)):
        assert np.array_equal(grids.to_grid(images[i], image_size[i]), version.apply(grid))
    inverse = torch.from_numpy(grids.INVERSE)[transform]
    restored_cells, restored_size = grids.turn(images, image_size, inverse, colors.argsort(-1))
    assert torch.equal(restored_cells, cells)
    assert torch.equal(restored_size, size)


def test_pairs_share_a_key_exactly_if_a_symmetry_maps_one_to_the_other():
    a, b = random_grid(3, 4), random_grid(2, 2)
    for _ in range(20):
        version = Augmentation(int(RNG.integers(8)), (0, *(1 + RNG.permutation(9)).tolist()))
        pair = version.apply(a), version.apply(b)
        assert grids.pair_key(*pair) == grids.pair_key(a, b)
        assert grids.rough_key(*pair) == grids.rough_key(a, b)
    changed_grid = b.copy()
    changed_grid[0, 0] = (changed_grid[0, 0] + 1) % 10
    assert grids.pair_key(a, changed_grid) != grids.pair_key(a, b)
    assert grids.pair_key(grids.apply_transform(a, 1), b) != grids.pair_key(a, b)  # only a is transposed
    black, blue = np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)
    assert grids.pair_key(black, black) != grids.pair_key(blue, blue)  # black stays black


def test_the_first_version_is_plain_and_all_are_distinct_and_follow_name_and_seed():
    content = [random_grid(3, 4), random_grid(2, 3)]
    transforms, colors = grids.draw_augmentations("a", content, 100, 0)
    versions = [Augmentation(int(t), tuple(c.tolist())) for t, c in zip(transforms, colors, strict=True)]
    assert len(versions) == 101
    assert versions[0] == Augmentation()
    assert all(v.colors[0] == 0 and sorted(v.colors) == list(range(10)) for v in versions)
    assert len({tuple(grids.grid_key(v.apply(g)) for g in content) for v in versions}) == 101
    assert {v.transform for v in versions} == set(range(8))
    for name, seed, is_equal in (("a", 0, True), ("b", 0, False), ("a", 1, False)):
        other_colors = grids.draw_augmentations(name, content, 100, seed)[1]
        assert np.array_equal(other_colors, colors) is is_equal
    assert np.array_equal(grids.draw_augmentations("a", content, 0, 0)[0], [0])


def test_versions_with_the_same_content_are_dropped():
    black = [np.zeros((2, 2), np.uint8)]
    assert len(grids.draw_augmentations("a", black, 50, 0)[0]) == 1
    stripe = [np.array([[0, 1]], dtype=np.uint8)]  # four orientations x nine colours = 36 versions
    transforms, colors = grids.draw_augmentations("a", stripe, 500, 0)
    contents = {
        grids.grid_key(Augmentation(int(t), tuple(c.tolist())).apply(stripe[0]))
        for t, c in zip(transforms, colors, strict=True)
    }
    assert len(transforms) == len(contents) == 36


def test_votes_rank_by_count_and_the_earlier_wins_a_tie():
    assert grids.vote("abbca", 2) == ["a", "b"]
    assert grids.vote("bbaac", 2) == ["b", "a"]
    assert grids.vote(["c", None, None, None, "d"], 2) == ["c", "d"]
    assert grids.vote([None], 2) == []


def test_the_score_averages_within_a_task_and_then_over_tasks():
    assert grids.mean_by_task({(0, "a"): True, (0, "b"): False, (1, "a"): True}) == 0.75
    assert grids.mean_by_task({}) == 0.0
