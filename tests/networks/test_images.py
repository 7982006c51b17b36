"""Encoders turn images into patches, decoders turn patches into images, and a task gets the networks it needs."""

import copy

import pytest
import torch
from torch import nn

from pyro_gram.errors import ConfigError
from pyro_gram.networks.embeddings import (
    PaddedEncoder,
    PuzzleEncoder,
    TokenDecoder,
    TokenEncoder,
    answer_decoder,
    answer_encoder,
    input_encoder,
)
from pyro_gram.networks.images import PatchDecoder, PatchEncoder, check_image
from pyro_gram.spec import TaskSpec

WIDTH, CHANNELS, REACH = 24, 8, 4  # two 5 x 5 convolutions connect pixels up to 4 (REACH) apart
BATCHES = [(), (3,), (2, 3)]
SHAPES = [((8, 8), 2), ((8, 12), 4), ((6, 9), 3)]  # (rows and columns of an image, side of a patch), in pixels


def encoder(image=(8, 12), patch=4, classes=2):
    return PatchEncoder(image, patch, classes, CHANNELS, WIDTH)


def decoder(image=(8, 12), patch=4, classes=2):
    return PatchDecoder(image, patch, classes, CHANNELS, WIDTH)


def pixels_of(image, *batch, classes=2):
    return torch.randint(0, classes, (*batch, image[0] * image[1]))


def remove_group_norm(module):
    """Return a copy without GroupNorm (which uses the whole image), so that only convolutions connect pixels."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, nn.Identity())
    return module


def patch_cells(image, patch):
    """Return the index of the patch in which each pixel lies, ``[rows * columns]``. ``unfold`` is not used."""
    rows, columns = image
    return torch.tensor([(r // patch) * (columns // patch) + c // patch for r in range(rows) for c in range(columns)])


def make_identity(module, patch):
    """Give the module one channel, remove its convolutions, and make its projection the identity."""
    module.project = nn.Linear(patch**2, patch**2, bias=False)
    nn.init.eye_(module.project.weight)
    if isinstance(module, PatchEncoder):
        module.stem = nn.Identity()
    else:
        module.head, module.classes = nn.Identity(), 1
    return module


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("image", "patch"), SHAPES)
def test_encoder_has_one_position_per_patch_and_treats_leading_dimensions_independently(image, patch, batch):
    module, pixels = encoder(image, patch), pixels_of(image, *batch)
    e = module(pixels)
    assert e.shape == (*batch, image[0] * image[1] // patch**2, WIDTH)
    rows = [module(row) for row in pixels.reshape(-1, pixels.shape[-1])]
    torch.testing.assert_close(e, torch.stack(rows).reshape(e.shape))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("image", "patch"), SHAPES)
def test_decoder_has_logits_for_each_pixel_and_treats_leading_dimensions_independently(image, patch, batch):
    module = decoder(image, patch, classes=3)
    h = torch.randn(*batch, image[0] * image[1] // patch**2, WIDTH)
    logits = module(h)
    assert logits.shape == (*batch, image[0] * image[1], 3)
    rows = [module(row[None])[0] for row in h.reshape(-1, *h.shape[-2:])]
    torch.testing.assert_close(logits, torch.stack(rows).reshape(logits.shape))


@pytest.mark.parametrize("batch", BATCHES)
def test_decoder_reads_the_last_positions(batch):
    module = decoder()
    h = torch.randn(*batch, 16 + module.positions, WIDTH)
    torch.testing.assert_close(module(h), module(h[..., 16:, :]))


def test_encoder_takes_answers_shared_by_several_samples():
    module, pixels = encoder(), pixels_of((8, 12), 3)
    shared_pixels = pixels.expand(5, 3, -1)  # expanded tensors are not contiguous
    torch.testing.assert_close(module(shared_pixels), module(pixels).expand(5, -1, -1, -1))
    transposed_pixels = pixels_of((8, 12), 4, 3).transpose(0, 1)
    torch.testing.assert_close(module(transposed_pixels), module(transposed_pixels.contiguous()))


@pytest.mark.parametrize("module", [encoder(), decoder()], ids=["encoder", "decoder"])
def test_every_parameter_has_a_gradient(module):
    value = pixels_of((8, 12), 2, 3) if isinstance(module, PatchEncoder) else torch.randn(2, 3, 6, WIDTH)
    (module(value) * torch.randn(WIDTH if isinstance(module, PatchEncoder) else 2)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_reach_the_last_positions_of_h_and_no_other():
    module = decoder()
    h = torch.randn(2, 16 + module.positions, WIDTH, requires_grad=True)
    module(h)[..., 1].sum().backward()
    has_gradient = h.grad.abs().amax((0, 2)) > 0
    assert has_gradient.tolist() == [False] * 16 + [True] * module.positions


@pytest.mark.parametrize(("image", "patch"), SHAPES)
def test_position_i_of_the_encoder_holds_the_pixels_of_patch_i(image, patch):
    module = make_identity(encoder(image, patch), patch)
    pixels = pixels_of(image)
    positions = module(pixels)
    cells = patch_cells(image, patch)
    for i in range(len(positions)):
        assert positions[i].tolist() == (2.0 * pixels[cells == i] - 1).tolist()


@pytest.mark.parametrize(("image", "patch"), SHAPES)
def test_the_decoder_puts_patch_i_where_the_encoder_took_it_from(image, patch):
    encode, decode = make_identity(encoder(image, patch), patch), make_identity(decoder(image, patch), patch)
    pixels = pixels_of(image, 4)
    assert torch.equal(decode(encode(pixels))[..., 0], 2.0 * pixels - 1)


@pytest.mark.parametrize(("image", "patch"), [((16, 16), 4), ((12, 16), 2)])
def test_a_pixel_reaches_only_the_positions_near_it(image, patch):
    module = remove_group_norm(encoder(image, patch))
    pixels = pixels_of(image)
    row, column = 1, 14
    changed_pixels = pixels.clone()
    changed_pixels[row * image[1] + column] ^= 1
    is_changed = (module(changed_pixels) - module(pixels)).abs().amax(-1) > 1e-7
    is_near = [
        i // (image[1] // patch) * patch - REACH <= row < (i // (image[1] // patch) + 1) * patch + REACH
        and i % (image[1] // patch) * patch - REACH <= column < (i % (image[1] // patch) + 1) * patch + REACH
        for i in range(len(is_changed))
    ]
    assert is_changed.tolist() == is_near
    assert 0 < sum(is_near) < len(is_near) / 2


@pytest.mark.parametrize(("image", "patch"), [((16, 16), 4), ((12, 16), 2)])
def test_a_position_reaches_only_the_pixels_near_it(image, patch):
    module = remove_group_norm(decoder(image, patch))
    h = torch.randn(image[0] * image[1] // patch**2, WIDTH)[None]
    columns = image[1] // patch
    changed_h = h.clone()
    changed_h[0, columns - 1] += 1  # the patch at the top right
    is_changed = (module(changed_h) - module(h)).abs().amax(-1).view(image) > 1e-7
    is_near = torch.zeros(image, dtype=torch.bool)
    is_near[: patch + REACH, image[1] - patch - REACH :] = True
    assert torch.equal(is_changed, is_near)


def test_with_group_norm_far_positions_move_much_less_than_near_ones():
    module, pixels = encoder((16, 16), 4), pixels_of((16, 16))
    changed_pixels = pixels.clone()
    changed_pixels[0] ^= 1
    changes = (module(changed_pixels) - module(pixels)).abs().mean(-1)
    assert changes[0] > 5 * changes[10:].max()


def test_pixel_values_are_spread_evenly_from_minus_one_to_one():
    module = make_identity(encoder((2, 2), 2, classes=5), 2)
    assert module(torch.tensor([0, 1, 2, 4])).tolist() == [[-1.0, -0.5, 0.0, 1.0]]


def test_patches_must_tile_the_image():
    assert check_image((8, 12), 4) == (2, 3)
    for build in (encoder, decoder):
        with pytest.raises(ConfigError, match="patches of 3 x 3 pixels do not tile an image of 8 x 12"):
            build((8, 12), 3)


# ---- which network a task gets -----------------------------------------------------------------------------------

IMAGE = TaskSpec(49, None, 0, 784, 2, image=(28, 28), patch=4)
TOKENS = TaskSpec(9, None, 5, 9, 4)
FEATURES = TaskSpec(6, 6, 3, 6, 3)
PUZZLES = TaskSpec(9, None, 5, 9, 5, puzzles=7)


def test_an_image_task_has_no_input_and_answers_of_pixels():
    assert input_encoder(IMAGE, 16) is None
    y = torch.randint(0, 2, (2, 3, 784))
    e = answer_encoder(IMAGE, 16)(y)
    assert e.shape == (2, 3, IMAGE.input_length, 16)
    assert answer_decoder(IMAGE, 16)(e).shape == (2, 3, 784, 2)


@pytest.mark.parametrize("spec", [TOKENS, FEATURES, PUZZLES], ids=["tokens", "features", "puzzles"])
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("batch", BATCHES)
def test_a_task_with_input_gets_prefix_and_positions(spec, prefix, batch):
    if spec.puzzles and not prefix:
        with pytest.raises(ConfigError, match="set model.prefix to 1 or more"):
            input_encoder(spec, 16, prefix)
        return
    module = input_encoder(spec, 16, prefix)
    assert isinstance(module, PuzzleEncoder if spec.puzzles else PaddedEncoder)
    x = torch.randint(0, spec.input_vocabulary, (*batch, *spec.input_shape))
    assert module(x).shape == (*batch, prefix + spec.input_length, 16)
    y = torch.randint(0, spec.output_classes, (*batch, spec.output_length))
    assert isinstance(answer_encoder(spec, 16), TokenEncoder)
    assert answer_encoder(spec, 16)(y).shape == (*batch, spec.output_length, 16)
    h = torch.randn(*batch, prefix + spec.input_length, 16)
    assert isinstance(answer_decoder(spec, 16), TokenDecoder)
    assert answer_decoder(spec, 16)(h).shape == (*batch, spec.output_length, spec.output_classes)


def test_a_puzzle_has_an_embedding_of_its_own_that_learns_alone():
    module = input_encoder(PUZZLES, 16, 3)
    x = torch.randint(0, 5, (2, 10))
    x[:, 0] = torch.tensor([2, 5])
    module(x)[:, :3].sum().backward()
    has_gradient = module.puzzle_embedding.grad.abs().amax(1) > 0
    assert has_gradient.nonzero().flatten().tolist() == [2, 5]


def test_a_decoder_reads_the_features_of_each_pixel():
    decoder = PatchDecoder((8, 12), 4, 2, CHANNELS, WIDTH, features=3)
    h, features = torch.randn(2, 5, 6, WIDTH), torch.randn(5, 3, 8, 12)
    logits = decoder(h, features)
    assert logits.shape == (2, 5, 96, 2)
    features[1, :, 2, 3] += 1.0
    is_changed = (decoder(h, features) != logits).flatten(2).any(-1)
    assert is_changed[:, 1].all()
    assert not is_changed[:, [0, 2, 3, 4]].any()
