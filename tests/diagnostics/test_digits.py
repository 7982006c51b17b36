import io
import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.studies import train_classifier
from pyro_gram.diagnostics import digits
from pyro_gram.diagnostics.digits import (
    WEIGHTS,
    DigitClassifier,
    Reference,
    as_images,
    assess,
    frechet_distance,
    frechet_floor,
    inception_score,
    load_classifier,
    nearest_neighbours,
    reference,
)
from pyro_gram.diagnostics.plots.run import neighbours_figure
from pyro_gram.errors import CheckpointError, ConfigError, InputError
from pyro_gram.system.cli import call
from pyro_gram.tasks.mnist import MNIST, MNISTConfig
from tests.tasks.test_mnist import DATA, needs_data


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count, ink=0.15, pixels=784, seed=0):
    return (torch.rand(count, pixels, generator=generator(seed)) < ink).long()


def strokes(count, seed=0):
    """Return images that differ from each other: each shows a bar of random length at a random place."""
    images = torch.zeros(count, 28, 28, dtype=torch.long)
    place = torch.randint(0, 14, (count, 3), generator=generator(seed)).tolist()
    for image, (row, column, length) in zip(images, place, strict=True):
        image[row : row + 4 + length, column + 5 : column + 8] = 1
    return images.flatten(1)


@pytest.fixture(scope="module")
def real():
    task = MNIST(MNISTConfig(), str(DATA))
    return {name: task.split(name).solutions for name in ("train", "test")} | {"labels": task.labels("test")}


# ---- the classifier ----------------------------------------------------------------------------------------------


@needs_data
def test_the_committed_classifier_reads_real_test_digits(real):
    with torch.no_grad():
        predictions = load_classifier()(real["test"][:3000]).argmax(-1)
    assert (predictions == real["labels"][:3000]).double().mean() > 0.985


@needs_data
def test_the_classifier_reads_digits_of_14_pixels():
    task = MNIST(MNISTConfig(side=14, patch=2), str(DATA))
    with torch.no_grad():
        predictions = load_classifier()(task.split("test").solutions[:2000]).argmax(-1)
    assert (predictions == task.labels("test")[:2000]).double().mean() > 0.96


def test_the_committed_files_belong_together_and_are_small():
    about = json.loads(WEIGHTS.with_suffix(".json").read_text())
    weights = load_file(WEIGHTS)
    assert sum(t.numel() for t in weights.values()) == about["parameters"]
    assert about["accuracy_test"] > 0.985
    assert WEIGHTS.stat().st_size < 400_000


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_logits_and_features_of_any_leading_shape_and_integer_type(batch):
    classifier = load_classifier()
    pixels = torch.randint(0, 2, (*batch, 784))
    assert classifier(pixels).shape == (*batch, 10)
    assert classifier.features(pixels.to(torch.uint8)).shape == (*batch, classifier.num_features)
    torch.testing.assert_close(classifier(pixels), classifier.head(classifier.features(pixels.to(torch.uint8))))


def test_loading_gives_frozen_weights_for_evaluation():
    classifier = load_classifier()
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    assert load_classifier() is classifier


def test_small_images_are_enlarged_pixel_by_pixel():
    small = torch.tensor([[1, 0, 0, 1]])  # 2 x 2
    large = as_images(small)
    assert large.shape == (1, 1, 28, 28)
    assert torch.equal(large[0, 0, :14, :14], torch.ones(14, 14))
    assert large[0, 0, :14, 14:].sum() == 0
    assert large.sum() == 2 * 14 * 14


@pytest.mark.parametrize("pixels", [783, 81, 0, 900])
def test_images_of_other_sizes_are_refused(pixels):
    with pytest.raises(InputError, match=f"images of {pixels} pixels"):
        as_images(torch.zeros(2, pixels))


def test_missing_and_damaged_weights_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is missing: reinstall"):
        load_classifier(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(CheckpointError, match="text.safetensors does not hold the weights of the digit classifier"):
        load_classifier(tmp_path / "text.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="other.safetensors does not hold"):
        load_classifier(tmp_path / "other.safetensors")


# ---- Frechet distance and Inception score ------------------------------------------------------------------------


def frechet_by_hand(a, b):
    """Compute the Frechet distance from symmetric square roots. (torchmetrics uses the eigenvalues of a product.)"""
    mean = (a.mean(0) - b.mean(0)).square().sum()
    values, vectors = torch.linalg.eigh(a.T.cov())
    root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.T.cov() @ root).clamp(min=0).sqrt().sum()
    return (mean + a.T.cov().trace() + b.T.cov().trace() - 2 * cross).item()


def test_the_frechet_distance_follows_its_formula_and_is_symmetric():
    a, b = strokes(200), strokes(150, seed=1) ^ noise(150, 0.02)
    features = [digits.classify(images)[0] for images in (a, b)]
    assert frechet_distance(a, b) == pytest.approx(frechet_by_hand(*features), rel=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_the_frechet_distance_of_a_set_to_itself_is_zero():
    images = strokes(150)
    assert 0 <= frechet_distance(images, images.to(torch.uint8).flip(0)) < 1e-4


@needs_data
def test_frechet_distance_of_real_digits_grows_with_noise(real):
    other_images, images = real["test"][:1500], real["test"][1500:2300]
    flips = torch.rand(images.shape, generator=generator())
    distances = [frechet_distance(other_images, images ^ (flips < p)) for p in (0.0, 0.05, 0.1, 0.3)]
    assert distances == sorted(distances)
    assert distances[1] > 2 * distances[0]


@needs_data
def test_fresh_real_digits_score_near_the_floor(real):
    test = real["test"]
    floor = frechet_floor(test[:1600], 400)
    assert frechet_distance(test[:1600], test[1600:2000]) < 2 * floor
    assert frechet_distance(test[:1600], noise(400)) > 50 * floor


def test_the_floor_compares_at_most_half_of_the_images():
    images = strokes(200)
    half = frechet_distance(images[100:], images[:100])
    assert frechet_floor(images, 100) == pytest.approx(half)
    assert frechet_floor(images, 5000) == pytest.approx(half)


def inception_by_hand(logits):
    p = logits.softmax(-1)
    marginal = torch.special.entr(p.mean(0)).sum()
    return math.exp(marginal - torch.special.entr(p).sum(-1).mean())


@needs_data
def test_inception_score_lies_between_1_and_10_and_is_high_for_real_digits(real):
    score = inception_score(real["test"][:1500])
    assert 9 < score <= 10
    assert score == pytest.approx(inception_by_hand(digits.classify(real["test"][:1500])[1]), rel=1e-6)
    ones = real["test"][real["labels"] == 1]
    assert 1 <= inception_score(ones) < 1.2
    assert inception_score(torch.cat((ones, real["test"][real["labels"] == 0][: len(ones)]))) == pytest.approx(
        2, abs=0.3
    )


def test_inception_score_of_one_image_repeated_is_1():
    assert inception_score(strokes(1).expand(500, -1)) == pytest.approx(1, abs=1e-9)
    assert inception_score(strokes(1)) == pytest.approx(1, abs=1e-9)


def test_scores_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first = inception_score(strokes(50)), frechet_distance(strokes(50), noise(50))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (inception_score(strokes(50)), frechet_distance(strokes(50), noise(50))) == first


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="at least 2 images in each set, not 1 and 3"):
        frechet_distance(strokes(1), strokes(3))


def test_a_missing_torchmetrics_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    for score in (inception_score, lambda images: frechet_distance(images, images)):
        with pytest.raises(ConfigError, match=r"pip install -e '.\[mnist\]'"):
            score(strokes(3))


# ---- memorization ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "num_train", "pixels"), [(40, 70, 784), (1, 1, 4), (60, 90, 9)])
def test_nearest_neighbours_are_those_of_brute_force(count, num_train, pixels, monkeypatch):
    monkeypatch.setattr(digits, "CHUNK", 16)  # small enough that both sets have several chunks
    fake, train = noise(count, 0.4, pixels), noise(num_train, 0.4, pixels, seed=1)
    index, distance = nearest_neighbours(fake, train.to(torch.uint8))
    distances = (fake[:, None] != train).sum(-1)
    assert index.dtype == distance.dtype == torch.int64
    assert torch.equal(distance, distances.amin(1))
    assert torch.equal(distances.gather(1, index[:, None])[:, 0], distance)
    assert torch.equal(index, distances.argmin(1))


def test_a_copy_is_its_own_nearest_neighbour():
    train = noise(9000)
    index, distance = nearest_neighbours(train[[8123, 17]], train)
    assert index.tolist() == [8123, 17]
    assert distance.tolist() == [0, 0]


def test_neighbours_need_training_images_of_the_same_size():
    index, distance = nearest_neighbours(noise(0), noise(5))
    assert index.shape == distance.shape == (0,)
    for train in (noise(0), noise(5, pixels=196)):
        with pytest.raises(InputError, match="cannot compare images"):
            nearest_neighbours(noise(3), train)


# ---- all metrics -------------------------------------------------------------------------------------------------


@needs_data
def test_metrics_distinguish_fresh_digits_copies_and_noise():
    task = MNIST(MNISTConfig(train=4000, validation=400, test=1200), str(DATA))
    data = task.split("train").solutions
    real = reference(task, "test")
    assert reference(task, "test") is real
    fresh_metrics = assess(real, task.split("validation").solutions.long())
    copy_metrics = assess(real, data[:400].long())
    noise_metrics = assess(real, noise(400))
    assert all(math.isfinite(value) for value in fresh_metrics.values())
    assert set(fresh_metrics) == set(copy_metrics) == set(noise_metrics)
    assert fresh_metrics["classes_found"] == copy_metrics["classes_found"] == 10
    assert 2.2 < fresh_metrics["class_entropy"] <= math.log(10)
    assert 9 < fresh_metrics["inception_score"] <= 10
    assert fresh_metrics["digits_recognized"] > 0.95
    assert fresh_metrics["frechet_distance"] < 3 * fresh_metrics["frechet_distance_floor"]
    assert fresh_metrics["exact_copies"] < 0.01
    assert fresh_metrics["nearest_distance"] == pytest.approx(fresh_metrics["nearest_distance_real"], rel=0.1)
    assert copy_metrics["exact_copies"] == 1
    assert copy_metrics["nearest_distance"] == 0
    assert noise_metrics["frechet_distance"] > 50 * fresh_metrics["frechet_distance"]
    assert noise_metrics["nearest_distance"] > 2 * fresh_metrics["nearest_distance"]
    assert noise_metrics["inception_score"] < 3
    assert fresh_metrics["real_images"] == 1200


def test_samples_of_another_size_are_refused():
    real = Reference(torch.zeros(2, 64), torch.zeros(2, 10), noise(5), torch.zeros(2))
    for tokens in (noise(5, pixels=196), noise(1), noise(5)[None]):
        with pytest.raises(InputError, match="samples of shape .*: expected at least 2 images of 784 pixels"):
            assess(real, tokens)


# ---- figures -----------------------------------------------------------------------------------------------------


def test_the_figure_draws_each_sample_next_to_its_nearest_training_image():
    tokens, train = noise(7, pixels=196), noise(50, pixels=196, seed=1).to(torch.uint8)
    train[31] = tokens[2]
    figure = neighbours_figure(tokens, train, 14)
    index, distance = nearest_neighbours(tokens, train)
    drawings = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(drawings) == 7
    for picture, image, nearest in zip(drawings, tokens, train[index], strict=True):
        assert picture[:, :14].tolist() == image.view(14, 14).tolist()
        assert picture[:, -14:].tolist() == nearest.view(14, 14).tolist()
    titled_axes = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in titled_axes] == [f"{d} pixels" for d in distance.tolist()]
    assert [len(axes.collections[0].get_offsets()) for axes in titled_axes] == distance.tolist()
    assert distance[2] == 0
    figure.savefig(io.BytesIO(), format="png", dpi=20)


# ---- the script that made the weights ----------------------------------------------------------------------------


@needs_data
def test_the_script_learns_to_read_digits_of_both_sizes_in_a_few_batches(real):
    large, small = (
        MNIST(MNISTConfig(train=3200, test=500, **sizes), str(DATA)) for sizes in ({}, train_classifier.SMALL)
    )
    data = [task.split("train").solutions for task in (large, small)]
    model = train_classifier.train(*data, large.labels("train"), seed=0, epochs=1)
    for task, least_accuracy in ((large, 0.5), (small, 0.4)):
        assert train_classifier.accuracy(model, task.split("test").solutions, task.labels("test")) > least_accuracy


def test_shifted_images_move_together():
    images = torch.zeros(3, 28, 28, dtype=torch.uint8)
    images[:, 10:14, 7:9] = 1
    places = set()
    for seed in range(40):
        moved_images = train_classifier.shift_images(images.flatten(1), generator(seed)).view(3, 28, 28)
        corner = moved_images[0].nonzero()[0]
        places.add(tuple((corner - torch.tensor([10, 7])).tolist()))
        assert torch.equal(moved_images, images.roll(tuple((corner - torch.tensor([10, 7])).tolist()), (1, 2)))
    assert {abs(step) for place in places for step in place} == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--out", "weights.pt"], "must end in .safetensors"),
        (["--data-dir", "nowhere"], "'nowhere' is not a directory"),
    ],
)
def test_the_script_refuses_bad_arguments_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(train_classifier.main, arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_classifier_has_fewer_than_90000_parameters():
    assert sum(p.numel() for p in DigitClassifier().parameters()) < 90_000
