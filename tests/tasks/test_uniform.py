import pytest
import torch

from pyro_gram.tasks.uniform import expected_total_variation, total_variation


def test_total_variation_counts_right_samples_only_and_is_one_if_there_are_none():
    ids = torch.tensor([[0, -1, 2, 0], [0, -1, 2, -1], [1, -1, 1, -1], [1, -1, -1, -1]])
    distances = total_variation(ids, torch.tensor([2, 2, 4, 1]))
    assert distances.tolist() == [0, 1, pytest.approx(0.5), 0]
    assert total_variation(torch.full((4, 1), -1), torch.tensor([1])).item() == 1


@pytest.mark.parametrize(("m", "n"), [(1, 5), (2, 1), (7, 5), (50, 20)])
def test_the_expected_total_variation_is_the_mean_over_uniform_draws(m, n):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(m, (n, 1000), generator=generator)
    distances = total_variation(draws, torch.full((1000,), m))
    expected = expected_total_variation(torch.tensor([m]), n).item()
    assert distances.mean().item() == pytest.approx(expected, abs=4 * distances.std().item() / 1000**0.5 + 1e-9)


def test_an_id_beyond_the_solutions_is_refused():
    with pytest.raises(ValueError, match="below num_solutions"):
        total_variation(torch.tensor([[0, 1]]), torch.tensor([2, 1]))
