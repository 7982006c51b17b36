import math
import re

import pytest

from pyro_gram.diagnostics import verdicts
from pyro_gram.diagnostics.verdicts import BAD, GOOD, LOOK, UNKNOWN, Scale
from tests.conftest import ROOT, small_config


@pytest.mark.parametrize(
    ("scale", "value", "level"),
    [
        (Scale(0.1, 0.5, ""), 0.1, GOOD),
        (Scale(0.1, 0.5, ""), 0.11, LOOK),
        (Scale(0.1, 0.5, ""), 0.5, LOOK),
        (Scale(0.1, 0.5, ""), 0.51, BAD),
        (Scale(0.9, 0.5, ""), 0.9, GOOD),
        (Scale(0.9, 0.5, ""), 0.89, LOOK),
        (Scale(0.9, 0.5, ""), 0.5, LOOK),
        (Scale(0.9, 0.5, ""), 0.49, BAD),
        (Scale(0.1, 0.5, ""), math.nan, BAD),
    ],
)
def test_levels_begin_where_the_threshold_says(scale, value, level):
    assert scale.level(value) == level


def test_the_text_of_a_threshold_names_its_direction():
    assert Scale(0.1, 0.5, "gap").text == "gap: good up to 0.1, do not trust above 0.5"
    assert Scale(0.9, 0.5, "share").text == "share: good from 0.9, do not trust below 0.5"


def test_a_guide_leaks_if_only_it_is_right():
    verdict = verdicts.leak(0.99, 0.1)
    assert verdict.level == BAD
    assert "hands over" in verdict.meaning
    assert verdicts.leak(0.97, 0.95).level == GOOD


def test_a_prior_that_is_right_on_training_inputs_only_shows_no_leak_but_does_not_generalise():
    assert verdicts.leak(0.99, 0.3, 0.95).level == GOOD
    assert verdicts.generalisation(0.95, 0.3).level == BAD
    assert "memorised" in verdicts.generalisation(0.95, 0.3).meaning
    results = verdicts.from_metrics({"sample_accuracy": 0.3, "posterior_accuracy": 0.99}, {}, {}, 0.95)
    assert {v.name: v.level for v in results} == {"right answers": BAD, "leak": GOOD, "generalisation": BAD}
    assert verdicts.leak(0.99, 0.3, 0.35).level == BAD
    assert verdicts.leak(0.99, 0.6, 0.35).level == LOOK  # the better of the prior's two accuracies counts
    assert verdicts.generalisation(0.35, 0.3).level == GOOD
    assert "on training inputs only" in verdicts.leak(0.99, 0.3).meaning


def test_a_small_kl_is_a_collapse_only_with_a_large_reconstruction():
    assert verdicts.collapse(0.05, 3.0).level == BAD
    assert verdicts.collapse(0.05, 0.1).level == GOOD
    assert verdicts.collapse(2.0, 1.0).level == GOOD
    assert verdicts.collapse(20.0, 67.0).level == GOOD  # images keep a large reconstruction, because pixels are noisy
    assert verdicts.collapse(0.5, 2.5).level == LOOK


def summary(**changes):
    base = {"pairs": 20, "both_trusted": 10, "agree": 10, "believed": {"prior Monte Carlo": 20, "neither": 0}}
    return {**base, **changes}


def test_two_trusted_estimates_must_agree_and_nearly_all_pairs_need_a_trusted_one():
    assert verdicts.agreement(summary()).level == GOOD
    assert verdicts.agreement(summary(agree=8)).level == LOOK
    assert verdicts.agreement(summary(agree=3)).level == BAD
    assert verdicts.agreement(summary(both_trusted=4, agree=0)).level == UNKNOWN  # 4 comparable pairs are too few
    assert verdicts.estimate(summary()).level == GOOD
    assert verdicts.estimate(summary(believed={"prior Monte Carlo": 16, "neither": 4})).level == LOOK
    assert verdicts.estimate(summary(believed={"prior Monte Carlo": 4, "neither": 16})).level == BAD


def test_a_likelihood_needs_trusted_estimates():
    assert verdicts.likelihood(-2.0, 0.1, 1.9, untrusted_share=0.1).level == GOOD
    assert verdicts.likelihood(-4.0, 0.1, 1.9, untrusted_share=0.0).level == BAD
    assert verdicts.likelihood(-4.0, 0.1, 1.9, untrusted_share=0.2).level == UNKNOWN


def test_evenness_depends_on_the_effect_and_not_on_significance():
    even = {"tested": 100, "rejected": 100, "level": 0.05, "excess": 0.05, "uneven": 0.1}
    assert verdicts.evenness(even, 0.9, 0.95).level == GOOD
    assert "100 of 100" in verdicts.evenness(even, 0.9, 0.95).value
    assert verdicts.evenness({**even, "rejected": 0, "uneven": 0.6}, 0.5, 0.95).level == BAD
    assert verdicts.evenness({**even, "tested": 0}, 1.0, 1.0).level == UNKNOWN


def test_ranks_within_the_band_of_uniform_ranks_have_no_level_unless_good():
    assert verdicts.ranks({"a": 0.12, "b": 0.1}, band=0.25, data=50).level == GOOD
    assert verdicts.ranks({"a": 0.2, "b": 0.1}, band=0.25, data=50).level == UNKNOWN
    assert verdicts.ranks({"a": 0.2, "b": 0.1}, band=0.1, data=200).level == LOOK
    verdict = verdicts.ranks({"a": 0.2, "b": 0.4}, band=0.1, data=200)
    assert (verdict.level, verdict.value[:9]) == (BAD, "0.400 (b)")


def test_images_have_verdicts_on_quality_and_copies():
    real = {"inception_score_real": 9.0, "nearest_distance_real": 40.0}
    clear_verdicts = verdicts.from_metrics({**real, "inception_score": 8.0, "nearest_distance": 38.0}, {}, {})
    assert {v.name: v.level for v in clear_verdicts} == {"likeness": GOOD, "copies": GOOD}
    copied_verdicts = verdicts.from_metrics({**real, "inception_score": 9.0, "nearest_distance": 1.0}, {}, {})
    assert {v.name: v.level for v in copied_verdicts} == {"likeness": GOOD, "copies": BAD}
    noise_verdicts = verdicts.from_metrics({**real, "inception_score": 1.1, "nearest_distance": 200.0}, {}, {})
    assert {v.name: v.level for v in noise_verdicts} == {"likeness": BAD, "copies": GOOD}


def test_the_worst_measured_level_counts():
    good, look, bad = verdicts.accuracy(0.95), verdicts.accuracy(0.8), verdicts.accuracy(0.1)
    unknown_verdict = verdicts.evenness({"tested": 0}, 1.0, 1.0)
    assert verdicts.worst_level([good, unknown_verdict]) == GOOD
    assert verdicts.worst_level([good, look]) == LOOK
    assert verdicts.worst_level([look, bad, good]) == BAD
    assert verdicts.worst_level([unknown_verdict]) == UNKNOWN


def test_metrics_give_the_verdicts_that_they_allow():
    metrics = {"sample_accuracy": 0.9, "posterior_accuracy": 0.95, "kl": 1.0, "reconstruction": 0.5, "excess": 1.0}
    names = [v.name for v in verdicts.from_metrics(metrics, {}, {})]
    assert names == ["right answers", "leak", "collapse", "bound"]
    history = {"recent_accuracy": 0.5, "peak_accuracy": 0.9}
    assert verdicts.from_metrics({"sample_accuracy": None}, history, {})[0].level == BAD  # images have no accuracy
    without_guide = {"sample_accuracy": 0.9, "posterior_accuracy": None, "kl": None, "excess": 1.0}
    assert [v.name for v in verdicts.from_metrics(without_guide, {}, {})] == ["right answers"]


def test_the_options_in_messages_of_the_library_are_settings():
    config = small_config().to_dict()
    # The fields of these parts do not depend on the classes of a run.
    names = ("train", "optim", "beta", "heads", "evaluate")
    parts = {part: set(config[part]) for part in names}
    text = "".join(path.read_text() for path in sorted((ROOT / "pyro_gram").rglob("*.py")))
    options = set(re.findall(r"--([a-z_]+)\.([a-z_]+)", text))
    assert {("train", "on_policy_depth"), ("heads", "hidden")} <= options
    assert [f"--{part}.{field}" for part, field in sorted(options) if part in parts and field not in parts[part]] == []
