"""The autoregressive baseline (a prefix language model) is tested token by token."""

import pytest
import torch
from pyro_gram.models.autoregressive import Autoregressive

from pyro_gram.errors import ConfigError
from tests.conftest import build_case, build_small

TABLE = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(2))  # indices: last token, place, next token


def table_logits(e_x, tokens):
    """Return logits that depend on the previous token, on the place, and on e_x."""
    last_tokens = torch.nn.functional.pad(tokens, (1, 0), value=3)
    return TABLE[last_tokens, torch.arange(last_tokens.shape[-1])] * e_x.mean((-1, -2))[..., None, None]


def sequence():
    e_x = torch.ones(5, 2, 6) * torch.linspace(0.5, 1.5, 5)[:, None, None]
    return e_x, Autoregressive(table_logits, e_x, 4)


def expected_log_p(e_x, value):
    total, last_token = 0.0, 3
    for place, token in enumerate(value.tolist()):
        total += (TABLE[last_token, place] * e_x.mean()).log_softmax(-1)[token]
        last_token = token
    return total


def test_the_density_is_a_product_of_conditional_densities():
    e_x, p = sequence()
    assert (p.batch_shape, p.event_shape) == ((5,), (4,))
    value = torch.randint(3, (7, 5, 4))
    expected = torch.stack([torch.stack([expected_log_p(e_x[i], v[i]) for i in range(5)]) for v in value])
    torch.testing.assert_close(p.log_prob(value), expected)
    torch.testing.assert_close(p.log_prob(value[0]), expected[0])
    expanded_p = p.expand((7, 5))
    assert expanded_p.batch_shape == (7, 5)
    torch.testing.assert_close(expanded_p.log_prob(value), expected)
    torch.testing.assert_close(expanded_p.log_prob(value[0]), expected[0].expand(7, 5))
    assert p.support.event_dim == 1


def test_draws_follow_the_density_of_each_token():
    _, p = sequence()
    tokens = p.sample((4000,))
    assert tokens.shape == (4000, 5, 4)
    assert tokens.dtype == torch.long
    assert p.expand((2, 5)).sample((3,)).shape == (3, 2, 5, 4)
    first = torch.nn.functional.one_hot(tokens[:, 4, 0], 3).float().mean(0)
    torch.testing.assert_close(first, (TABLE[3, 0] * 1.5).softmax(-1), atol=0.03, rtol=0)
    for first_token in range(3):  # the second token, given the first
        following_tokens = tokens[:, 0, 1][tokens[:, 0, 0] == first_token]
        share = torch.bincount(following_tokens, minlength=3) / len(following_tokens)
        torch.testing.assert_close(share, (TABLE[first_token, 1] * 0.5).softmax(-1), atol=0.06, rtol=0)


@pytest.mark.parametrize("task", ["coloring", "sudoku_uncond"])
def test_logits_depend_on_the_input_and_earlier_tokens(task):
    case = build_case(model_name="autoregressive", task_name=task)
    model = case.solver.model.eval()
    y = case.y
    length, classes, width = y.shape[-1], model.spec.output_classes, model.config.width
    e_x = model.encoder(case.x) if case.x is not None else model.zeros.expand(5, *model.zeros.shape)
    logits = model.logits(e_x, y[:, :-1])
    assert logits.shape == (5, length, classes)
    start = torch.full((5, 1), classes)
    s = model.answer(torch.cat((start, y[:, :-1]), -1)) * width**0.5
    if case.x is None:
        expected = model.decoder(model.f(s))
    else:
        expected = model.decoder(model.f(torch.cat((e_x, s + e_x[:, -length:]), -2))[:, -length:])
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(
        model.logits(e_x, y[:, :1]), logits[:, :2], atol=1e-4, rtol=1e-4
    )  # no logit depends on later tokens


def test_an_answer_longer_than_its_input_is_aligned_at_the_end():
    model = build_small(model_name="autoregressive").model
    long_e_x, short_e_x = torch.randn(2, 7, 16), torch.randn(2, 3, 16)
    assert torch.equal(model._input_at_answer(long_e_x), long_e_x[:, -4:])
    input_at_answer = model._input_at_answer(short_e_x)
    assert input_at_answer.shape == (2, 4, 16)
    assert (input_at_answer[:, 0] == 0).all()
    assert torch.equal(input_at_answer[:, 1:], short_e_x)


def test_only_attention_can_be_causal():
    with pytest.raises(ConfigError, match="autoregressive"):
        build_small(model_name="autoregressive", model={"mixer": "relation_terms"}, task_name="latin")
    solver = build_small(model_name="autoregressive", model={"mixer": "swiglu"})  # the mixer of a preset
    assert solver.model.config.mixer == "attention"
