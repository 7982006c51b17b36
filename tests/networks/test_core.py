import pytest
import torch
from torch import nn

from pyro_gram.errors import ConfigError
from pyro_gram.networks.core import (
    CoreConfig,
    GaussianHead,
    LatentState,
    PositionSwiGLU,
    RecursiveCore,
    RMSNorm,
    RotaryAttention,
    SwiGLU,
    make_stack,
    rotate,
)
from pyro_gram.networks.embeddings import FeatureEncoder, PaddedEncoder, TokenDecoder, TokenEncoder

L, D = 6, 16
LAYERS = [
    RMSNorm(),
    SwiGLU(D, 8),
    PositionSwiGLU(L, 8),
    RotaryAttention(L, D, 2),
    make_stack("attention", 2, L, D, 2, 8),
    make_stack("swiglu", 2, L, D, 2, 8),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_layers_keep_the_shape_and_treat_leading_dimensions_independently(layer, batch):
    x = torch.randn(*batch, L, D)
    y = layer(x)
    assert y.shape == x.shape
    rows = x.reshape(-1, L, D)
    row_outputs = torch.stack([layer(row) for row in rows]).reshape(y.shape)
    torch.testing.assert_close(y, row_outputs)


def test_rms_norm_gives_unit_root_mean_square():
    rms = RMSNorm()(7 * torch.randn(5, D)).square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones(5), atol=1e-4, rtol=0)


def test_swiglu_follows_its_formula():
    layer, x = SwiGLU(D, 8, 5), torch.randn(3, D)
    gate, up = x @ layer.gate_up.weight[:8].T, x @ layer.gate_up.weight[8:].T
    torch.testing.assert_close(layer(x), (gate * torch.sigmoid(gate) * up) @ layer.down.weight.T)


def test_rotary_scores_depend_on_relative_position_only():
    attention = RotaryAttention(L, D, 1)
    qkv = torch.randn(1, 3, 1, D // 2, 2).expand(L, 3, 1, D // 2, 2)  # equal vectors at every position
    q, k, v = rotate(qkv.contiguous(), attention.rotation).flatten(-2).unbind(-3)  # [L, 1, D] each
    scores = q[:, 0] @ k[:, 0].T
    for shift in range(-L + 1, L):
        diagonal = scores.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert scores[0].std() > 1e-3  # the scores do depend on the relative position
    torch.testing.assert_close(v, qkv[:, 2].flatten(-2))  # values are not rotated


def test_attention_and_position_swiglu_see_every_position():
    for layer in (RotaryAttention(L, D, 2), PositionSwiGLU(L, 8)):
        x = torch.randn(L, D, requires_grad=True)
        layer(x)[0].sum().backward()
        assert (x.grad.abs().sum(-1) > 0).all()


def test_width_must_fit_the_heads():
    with pytest.raises(ConfigError, match="multiple of 2 \\* heads = 6"):
        RotaryAttention(L, D, 3)


def test_unknown_mixer_is_named():
    with pytest.raises(ConfigError, match="conv"):
        make_stack("conv", 1, L, D, 2, 8)


def test_core_is_k_low_steps_then_one_high_step():
    core = RecursiveCore(CoreConfig(width=D, heads=2, hidden=8, layers=1, low_steps=3), L)
    h, l, e = (torch.randn(2, L, D) for _ in range(3))
    u, l_new = core(LatentState(h, l), e)
    for _ in range(3):
        l = core.f_L(l + (h + e))
    torch.testing.assert_close(l_new, l)
    torch.testing.assert_close(u, core.f_H(h + l))


def test_core_sizes_must_be_positive():
    with pytest.raises(ConfigError, match="low_steps"):
        CoreConfig(low_steps=0)


def test_gaussian_head_starts_at_zero_mean_and_the_initial_scale():
    loc, scale = GaussianHead(D, 8, D, 0.1)(torch.randn(3, L, D))
    assert (loc == 0).all()
    torch.testing.assert_close(scale, torch.full_like(scale, 0.1))


def test_token_embeddings_have_unit_variance():
    encoder = TokenEncoder(500, 64)
    assert encoder(torch.arange(500)).std().item() == pytest.approx(1, abs=0.1)


def test_feature_encoder_sums_one_embedding_per_feature_and_value():
    encoder = FeatureEncoder(4, 3, D)
    tokens = torch.randint(0, 3, (2, L, 4))
    table = encoder.table.view(4, 3, D)
    expected = sum(table[f][tokens[..., f]] for f in range(4))
    torch.testing.assert_close(encoder(tokens), expected)


def test_prefix_positions_are_zero_and_the_decoder_reads_the_end():
    encoder = PaddedEncoder(TokenEncoder(5, D), prefix=3)
    e = encoder(torch.randint(0, 5, (2, L)))
    assert e.shape == (2, L + 3, D)
    assert (e[:, :3] == 0).all()
    decoder = TokenDecoder(4, 7, D)
    h = torch.randn(2, L + 3, D, requires_grad=True)
    decoder(h).sum().backward()
    assert (h.grad[:, :-4] == 0).all()
    assert (h.grad[:, -4:] != 0).any()


def test_every_parameter_gets_a_gradient():
    core = RecursiveCore(CoreConfig(width=D, heads=2, hidden=8, layers=1), L)
    u, l = core(LatentState(torch.randn(L, D), torch.randn(L, D)), torch.randn(L, D))
    (u.square().sum() + l.sum()).backward()
    names_without_gradient = [n for n, p in nn.Module.named_parameters(core) if p.grad is None or not p.grad.any()]
    assert names_without_gradient == []
