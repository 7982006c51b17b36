"""Attention heads see one relation each; inputs of several sizes are cropped and padded; unfit settings are errors."""

import pickle
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from pyro_gram.errors import ConfigError
from pyro_gram.networks import core
from pyro_gram.networks.core import RotaryAttention, make_stack
from pyro_gram.networks.fused import MAX_POSITIONS, plain_forms
from pyro_gram.networks.relations import check_mixer, max_over, mean_over
from pyro_gram.spec import Structure, TaskSpec
from tests.networks.relational import GRAPH_PADDING, SIZES, SPECS, make_pairs, make_program

D, HEADS = 16, 4
L = 6


def make_relations(*shape, length=L, relations=3):
    """Draw random relations in which each position sees itself."""
    return (torch.rand(*shape, relations, length, length) < 0.4) | torch.eye(length, dtype=torch.bool)


def make_structure(relations):
    return Structure(torch.zeros(relations.shape[-1], dtype=torch.long), relations)


def mean_jacobian(function, x):
    """Return the size of the derivative of the output at i by the input at j, ``[L, L]``."""
    return torch.autograd.functional.jacobian(function, x).abs().sum((1, 3))


# ---- heads -----------------------------------------------------------------------------------------------------------


def test_head_k_sees_relation_k_modulo_their_number():
    relations = make_relations(2)
    bias = make_structure(relations).attention_bias(heads=7)
    assert bias.shape == (2, 7, L, L)
    for k in range(7):
        assert torch.equal(bias[:, k] == 0, relations[:, k % 3])
        assert torch.equal(bias[:, k] == -torch.inf, ~relations[:, k % 3])


@pytest.mark.parametrize("head", range(HEADS))
def test_a_head_sees_its_relation_only(head):
    layer = RotaryAttention(0, D, HEADS).double()
    relations = make_relations()
    size = D // HEADS
    with torch.no_grad():
        layer.out.weight[:, : head * size] = 0  # the other heads' values do not reach the output
        layer.out.weight[:, (head + 1) * size :] = 0
    bias = make_structure(relations).attention_bias(HEADS)
    jacobian = mean_jacobian(lambda x: layer(x, bias), torch.randn(L, D, dtype=torch.double))
    assert torch.equal(jacobian > 1e-12, relations[head % 3])


def test_a_layer_sees_what_some_head_sees():
    stack = make_stack("relations", 1, L, D, HEADS, 8).double()
    relations = make_relations()
    bias = make_structure(relations).attention_bias(HEADS)
    jacobian = mean_jacobian(lambda x: stack(x, bias), torch.randn(L, D, dtype=torch.double))
    assert torch.equal(jacobian > 1e-12, relations.any(0))
    few_heads = make_structure(relations).attention_bias(2)
    stack = make_stack("relations", 1, L, D, 2, 8).double()
    jacobian = mean_jacobian(lambda x: stack(x, few_heads), torch.randn(L, D, dtype=torch.double))
    assert torch.equal(jacobian > 1e-12, relations[:2].any(0))


def test_attention_with_relations_knows_no_position():
    layer = RotaryAttention(0, D, HEADS)
    assert [name for name, _ in layer.named_parameters()] == ["qkv.weight", "out.weight"]
    bias = torch.zeros(HEADS, L, L)
    x, order = torch.randn(2, L, D), torch.randperm(L)
    torch.testing.assert_close(layer(x[:, order], bias), layer(x, bias)[:, order])


def values_and_gradients(module, x, bias):
    leaf = x.clone().requires_grad_()
    y = module(leaf, bias)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return (y, *torch.autograd.grad((weights * y).sum(), [leaf, *module.parameters()]))


@pytest.mark.parametrize(
    ("batch", "shape"), [((), ()), ((1,), (1,)), ((2,), ()), ((2,), (1,)), ((2,), (2,)), ((3, 1), (1,)), ((3, 2), (2,))]
)
def test_fused_and_plain_operations_agree(batch, shape):
    """``batch`` is that of x, ``shape`` that of the relations, which broadcasts to it."""
    stack = make_stack("relations", 2, L, D, HEADS, 12).double()
    x = torch.randn(*batch, L, D, dtype=torch.double)
    bias = make_structure(make_relations(*shape)).attention_bias(HEADS)
    fused = values_and_gradients(stack, x, bias)
    with plain_forms():
        plain = values_and_gradients(stack, x, bias)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_attention_follows_its_definition():
    layer = RotaryAttention(0, D, HEADS).double()
    x = torch.randn(3, L, D, dtype=torch.double)
    relations = make_relations(3)
    q, k, v = layer.qkv(x).view(3, L, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2) * (D // HEADS) ** -0.5).exp()
    visible = torch.stack([relations[:, i % 3] for i in range(HEADS)], 1)
    weights = scores * visible / (scores * visible).sum(-1, keepdim=True)
    expected = layer.out((weights @ v).transpose(1, 2).reshape(3, L, D))
    torch.testing.assert_close(layer(x, make_structure(relations).attention_bias(HEADS)), expected)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_long_inputs_agree_with_the_fused_operations(monkeypatch, shape):
    length = MAX_POSITIONS + 2
    stack = make_stack("relations", 1, length, D, HEADS, 12).double()
    x = torch.randn(3, 2, length, D, dtype=torch.double)
    bias = make_structure(make_relations(*shape, length=length)).attention_bias(HEADS)
    long = values_and_gradients(stack, x, bias)
    monkeypatch.setattr(core, "MAX_POSITIONS", length)
    fused = values_and_gradients(stack, x, bias)
    for a, b in zip(long, fused, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_half_precision_sees_the_same_relations():
    stack = make_stack("relations", 1, L, D, HEADS, 12)
    x, bias = torch.randn(2, L, D), make_structure(make_relations(2)).attention_bias(HEADS)
    exact = stack(x, bias)
    with torch.autocast("cpu", torch.bfloat16):
        y = stack(x, bias)
        other = stack(x, bias.flip(-1))
    assert 0 < (y - exact).abs().max() < 0.1 < (other - exact).abs().max()
    assert (stack.bfloat16()(x.bfloat16(), bias) - exact).abs().max() < 0.2


# ---- means over positions --------------------------------------------------------------------------------------------


def test_means_and_maxima_leave_padding_out():
    values, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    for i, n in enumerate((5, 2, 1)):
        torch.testing.assert_close(mean_over(values, mask)[i], values[i, :n].mean(0))
        torch.testing.assert_close(max_over(values, mask)[i], values[i, :n].amax(0))
    torch.testing.assert_close(mean_over(values, None), values.mean(-2))
    torch.testing.assert_close(max_over(values, None), values.amax(-2))


# ---- the shapes of a task --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", tuple(SPECS))
def test_sizes_and_crops(task):
    spec, (x, y) = SPECS[task], make_pairs(task)
    sizes = torch.tensor(SIZES[task])
    assert torch.equal(spec.sizes_of(x), sizes)
    assert torch.equal(spec.sizes_of(x[:, None].expand(-1, 2, *x.shape[1:])), sizes[:, None].expand(-1, 2))
    small = sizes <= 3
    x_small, y_small = spec.crop(x[small], y[small])
    assert x_small.shape[1:] == (3,) * (x.ndim - 1)
    assert torch.equal(y_small, y[small][:, :3])
    assert torch.equal(spec.sizes_of(x_small), sizes[small])
    padding = (0, x.shape[1] - 3) * (x.ndim - 1)
    assert torch.equal(torch.nn.functional.pad(x_small, padding, value=spec.padding), x[small])
    x_same, y_same = spec.crop(x, y)
    assert torch.equal(x_same, x)
    assert torch.equal(y_same, y)


@pytest.mark.parametrize("task", tuple(SPECS))
def test_the_structure_of_a_cropped_input_is_a_part_of_the_padded_one(task):
    """This checks the tasks of these tests, on which the other tests rely."""
    spec, (x, _) = SPECS[task], make_pairs(task)
    padded = spec.structure(x)
    assert padded.relations.diagonal(dim1=-2, dim2=-1).all()
    for i in range(len(x)):
        lone, positions = spec.structure(spec.crop(x[i], x[i])[0]), padded.mask[i].nonzero().flatten()
        assert lone.mask.all()
        assert torch.equal(lone.tokens, padded.tokens[i, positions])
        assert torch.equal(lone.relations, padded.relations[i][:, positions][:, :, positions])
        assert not padded.relations[i][:, positions][:, :, ~padded.mask[i]].any()
        size, classes = lone.values.shape
        assert torch.equal(lone.values, padded.values[i, :size, :classes])
        assert not padded.values[i, :size, classes:].any()


def test_a_task_of_one_size_is_not_cropped():
    spec = TaskSpec(4, None, 3, 4, 2)
    x, y = torch.zeros(2, 4).long(), torch.zeros(2, 4).long()
    assert spec.crop(x, y) == (x, y)
    assert torch.equal(spec.sizes_of(x), torch.tensor([4, 4]))


def test_positions_are_those_of_a_state():
    assert SPECS["graphs"].positions == 6
    assert SPECS["boards"].positions == 25
    assert TaskSpec(4, None, 3, 4, 2).positions == 4


def test_a_mask_needs_values():
    ones = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="leave only the value 0 open at padding"):
        Structure(torch.zeros(3).long(), torch.ones(1, 3, 3).bool(), mask=ones)


def test_a_spec_and_a_model_that_has_read_an_input_can_be_copied_and_pickled():
    spec = pickle.loads(pickle.dumps(SPECS["graphs"]))
    x, y = make_pairs("graphs")
    assert torch.equal(spec.structure(x).relations, SPECS["graphs"].structure(x).relations)
    model, guide = make_program(spec)
    guide(x, y)
    size = len(pickle.dumps(model))
    guide(torch.cat([x] * 50), torch.cat([y] * 50))
    assert len(pickle.dumps(model)) == size  # the relations of the last inputs are not copied
    copied_model, copied_guide = deepcopy((model, guide))
    assert copied_model.structure is copied_model.bias is None
    copied_guide(x, y)
    assert copied_model.mask.shape == (len(x), x.shape[-1])


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_fewer_heads_than_relations_are_an_error():
    with pytest.raises(ConfigError, match="2 heads cannot see the 3 relations.*raise model.heads to 3 or more"):
        make_program(SPECS["graphs"], model_config={"heads": 2})
    with pytest.raises(ConfigError, match="2 heads cannot see the 3 relations.*raise guide.heads to 3"):
        make_program(SPECS["graphs"], guide_config={"heads": 2, "layers": 1})
    make_program(SPECS["graphs"], guide_config={"heads": 2, "layers": 0})  # without layers no head is there
    check_mixer("relations", SPECS["graphs"], 0)


def test_learned_terms_know_a_limited_number_of_relations():
    check_mixer("relation_terms", replace(SPECS["graphs"], relations=8))
    with pytest.raises(ConfigError, match="at most 8 relations, not 9"):
        check_mixer("relation_terms", replace(SPECS["graphs"], relations=9))


@pytest.mark.parametrize("model", ["gram", "direct"])
def test_positions_before_the_input_are_an_error(model):
    parts = {} if model == "gram" else {"prior": "none", "guide": "prior"}
    with pytest.raises(ConfigError, match="set model.prefix to 0"):
        make_program(SPECS["graphs"], model, **parts, model_config={"prefix": 1})


@pytest.mark.parametrize("mixer", ["attention", "swiglu"])
def test_other_mixers_refuse_several_sizes(mixer):
    for spec in SPECS.values():
        with pytest.raises(ConfigError, match=f"need --model.mixer relations, not {mixer}"):
            make_program(spec, model_config={"mixer": mixer})


def test_a_task_without_relations_is_an_error():
    with pytest.raises(ConfigError, match="use --model.mixer attention"):
        make_program(TaskSpec(4, None, 3, 4, 2))


def test_an_autoregressive_model_needs_a_position_for_each_token():
    with pytest.raises(ConfigError, match="use another layout of the task"):
        make_program(SPECS["boards"], "autoregressive", "none", "prior")


def test_other_mixers_ignore_relations_of_inputs_of_one_size():
    spec = replace(SPECS["graphs"], padding=None)
    model, _ = make_program(spec, model_config={"mixer": "attention"})
    x, y = make_pairs("graphs")
    model(x.clamp(max=GRAPH_PADDING), y)
    assert model.structure is None
