"""The fused CPU operations have the values and gradients of plain torch operations."""

import pytest
import torch
import torch.nn.functional as F

from pyro_gram.networks import core
from pyro_gram.networks.core import RotaryAttention, make_stack
from pyro_gram.networks.fused import MAX_POSITIONS, FusedResidualNorm, can_fuse, plain_forms

D = 16


def fused_and_plain(monkeypatch, module, x):
    """Return (output, gradient of x, gradients of the parameters) twice: with fused, then with plain operations."""
    values = []
    for is_plain in (False, True):
        if is_plain:
            monkeypatch.setattr(core, "can_fuse", lambda *_: False)
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        values.append((y, *torch.autograd.grad((weights * y).sum(), [leaf, *module.parameters()])))
    return values


@pytest.mark.parametrize("length", [1, 9])
def test_values_and_gradients_of_a_stack_are_those_of_plain_operations(monkeypatch, length):
    stack = make_stack("attention", 2, 9, D, 2, 12).double()
    fused_values, plain_values = fused_and_plain(monkeypatch, stack, torch.randn(2, 3, length, D, dtype=torch.double))
    for a, b in zip(fused_values, plain_values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_under_autocast_fused_operations_are_used_and_close_to_float32(monkeypatch):
    stack = make_stack("attention", 2, 9, D, 2, 12)
    x = torch.randn(2, 9, D)
    exact_values = fused_and_plain(monkeypatch, stack, x)[0]
    monkeypatch.undo()
    calls = []
    attend = core.FusedRotaryAttention.apply
    monkeypatch.setattr(core.FusedRotaryAttention, "apply", lambda *args: calls.append(attend(*args)) or calls[-1])
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = stack(leaf)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    values = (y, *torch.autograd.grad((weights * y).sum(), [leaf, *stack.parameters()]))
    assert y.dtype == torch.float32
    assert len(calls) == 2
    for a, b in zip(values, exact_values, strict=True):
        assert 0 < (a - b).norm() < 0.02 * b.norm()


def test_attention_follows_its_definition():
    """As in TRM, channel i of a head (of ``size`` channels) is rotated together with channel i + size / 2."""
    heads, L = 2, 7
    layer = RotaryAttention(L, D, heads).double()
    x = torch.randn(3, L, D, dtype=torch.double)
    size = D // heads
    q, k, v = layer.qkv(x).view(3, L, 3, heads, size).permute(2, 0, 3, 1, 4)
    angle = torch.arange(L)[:, None] * 10_000.0 ** (-torch.arange(0, size, 2) / size)

    def rotate(z):
        a, b = z.chunk(2, -1)
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    weights = (rotate(q) @ rotate(k).transpose(-1, -2) * size**-0.5).softmax(-1)
    expected = layer.out((weights @ v).transpose(1, 2).reshape(3, L, D))
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


def test_the_norm_of_a_residual_passes_gradcheck_and_is_torchs():
    x, branch = (torch.randn(4, 6, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(FusedResidualNorm.apply, (x, branch))
    torch.testing.assert_close(FusedResidualNorm.apply(x, branch), F.rms_norm(x + branch, (6,)))


def test_long_inputs_and_prefixes_use_torchs_attention(monkeypatch):
    def refuse(*_):
        raise AssertionError("a square of scores")

    monkeypatch.setattr(core.FusedRotaryAttention, "apply", refuse)
    RotaryAttention(MAX_POSITIONS + 1, D, 2)(torch.randn(1, MAX_POSITIONS + 1, D))
    RotaryAttention(8, D, 2, prefix=3)(torch.randn(1, 8, D))
    with pytest.raises(AssertionError, match="a square of scores"):
        RotaryAttention(8, D, 2)(torch.randn(1, 8, D))


@pytest.mark.parametrize("length", [0, 9])  # without and with rotary positions
def test_compiled_attention_over_few_positions_is_the_plain_one(monkeypatch, length):
    layer = RotaryAttention(length, D, 2).double()
    x, bias = torch.randn(3, 9, D, dtype=torch.double), torch.randn(2, 9, 9, dtype=torch.double)
    bias[:, :, 4] = -torch.inf
    expected = layer(x, bias)

    def refuse(*_, **__):
        raise AssertionError("torch's kernel, which is slow with a mask")

    monkeypatch.setattr(core.F, "scaled_dot_product_attention", refuse)
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x, bias), expected, rtol=1e-6, atol=1e-6)


def test_second_derivatives_need_plain_operations():
    stack = make_stack("attention", 1, 5, D, 2, 12).double()
    x = torch.randn(2, 5, D, dtype=torch.double, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(stack(x).square().sum(), x, create_graph=True)
    with plain_forms():
        assert torch.autograd.gradgradcheck(lambda x: stack(x).sin().sum(), x[:1, :2].detach().requires_grad_())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_transforms_use_plain_operations():
    stack = make_stack("attention", 1, 5, D, 2, 12)
    x = torch.randn(3, 2, 5, D)
    torch.testing.assert_close(torch.vmap(stack)(x), stack(x), rtol=1e-4, atol=1e-5)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(stack(leaf).sin().sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: stack(x).sin().sum())(x), grad, rtol=1e-3, atol=1e-4)


def test_an_empty_batch_and_half_precision_run():
    stack = make_stack("attention", 1, 5, D, 2, 12)
    x = torch.randn(2, 5, D)
    y = stack(x)
    leaf = x[:0].requires_grad_()
    stack(leaf).sum().backward()
    assert leaf.grad.shape == (0, 5, D)
    assert (stack.bfloat16()(x.bfloat16()) - y).abs().max() < 0.1


def test_half_precision_uses_plain_operations():
    stack = make_stack("attention", 1, 5, D, 2, 12)
    x = torch.randn(2, 5, D)
    assert can_fuse(x)
    assert not can_fuse(x.bfloat16())
    assert not can_fuse(x, x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        y = stack(x)
    assert (y - stack(x)).abs().max() < 0.1
