import torch

from pyro_gram.tasks.held_out import InputSet, replace_unless_held_out


def test_a_set_contains_its_members_only():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 5, (2000, 3, 4), generator=generator).unique(dim=0)
    members, other_inputs = inputs[::2], inputs[1::2]
    input_set = InputSet(members, 5)
    assert input_set.contains(members).all()
    assert not input_set.contains(other_inputs).any()
    assert input_set.contains(members[None, :3]).shape == (1, 3)


def test_one_changed_token_is_another_input():
    x = torch.zeros(1, 81, dtype=torch.long)
    input_set = InputSet(x, 10)
    for place in range(81):
        y = x.clone()
        y[0, place] = 9
        assert not input_set.contains(y).any()


def test_pairs_stay_where_their_image_is_held_out():
    held_out = InputSet(torch.tensor([[1, 1]]), 2)
    x, y = torch.tensor([[0, 0], [0, 1]]), torch.tensor([[5], [6]])
    image_x, image_y = torch.tensor([[1, 1], [1, 0]]), torch.tensor([[7], [8]])
    new_x, new_y = replace_unless_held_out(held_out, x, y, image_x, image_y)
    assert new_x.tolist() == [[0, 0], [1, 0]]
    assert new_y.tolist() == [[5], [8]]
