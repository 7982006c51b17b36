"""Verdicts: can this posterior be trusted? Each verdict answers one question with a value, a threshold and a meaning.

Thresholds apply to the size of an effect, not to its significance: with enough samples every approximation is
significantly wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

GOOD, LOOK, BAD, UNKNOWN = "good", "look closer", "do not trust", "not measured"
LEVELS = (GOOD, LOOK, BAD)
SAMPLES, ESTIMATES, GUIDE = "samples", "estimates", "guide"


@dataclass(frozen=True)
class Verdict:
    """The answer to one question.

    Attributes:
        name: a short name of the question.
        level: ``good``, ``look closer`` or ``do not trust``; ``not measured`` if there are no data to decide.
        value: the measured value, in words and numbers.
        threshold: the values at which the levels begin.
        meaning: the consequence for the model, and a remedy.
        about: the subject: ``SAMPLES`` of the prior, ``ESTIMATES`` of log p(y|x), or the ``GUIDE``.
    """

    name: str
    level: str
    value: str
    threshold: str
    meaning: str
    about: str = SAMPLES

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Scale:
    """The levels of a quantity. Values up to ``good`` are good; values above ``bad`` are not to be trusted.

    If bad < good, values from ``good`` on are good, and values below ``bad`` are not to be trusted.
    """

    good: float
    bad: float
    quantity: str

    def level(self, value: float) -> str:
        """Return the level of a value; NaN has the level ``do not trust``."""
        if math.isnan(value):
            return BAD
        sign = 1 if self.bad > self.good else -1
        return GOOD if sign * value <= sign * self.good else LOOK if sign * value <= sign * self.bad else BAD

    @property
    def text(self) -> str:
        better, worse = ("up to", "above") if self.bad > self.good else ("from", "below")
        return f"{self.quantity}: good {better} {self.good:g}, do not trust {worse} {self.bad:g}"


ACCURACY = Scale(0.9, 0.5, "share of right samples")
LEAK = Scale(0.1, 0.5, "share of right answers under the guide minus the best share of the prior")
GENERALISATION = Scale(0.1, 0.3, "share of right samples on training inputs minus that on unseen inputs")
QUALITY = Scale(0.8, 0.3, "Inception score divided by that of real images")
COPIES = Scale(0.7, 0.3, "distance to the nearest training image divided by that of real images")
COLLAPSE = Scale(1.0, 0.25, "KL of the trajectory in nats per input")
BOUND = Scale(2.0, 8.0, "nats by which the ELBO is below that of a perfect model")
EVENNESS = Scale(0.2, 0.5, "total variation above that of perfect sampling, as a share of the largest possible")
KHAT = Scale(0.2, 0.5, "share of pairs whose k-hat is too high for the number of draws")
AGREEMENT = Scale(0.9, 0.7, "share of agreeing pairs among those where both estimates can be trusted")
NEITHER = Scale(0.1, 0.5, "share of pairs where neither estimate can be trusted")
LIKELIHOOD = Scale(0.5, 1.5, "nats by which log p(y|x) is below that of a perfect model")
RANKS = Scale(0.15, 0.3, "largest deviation of the distribution of ranks from uniform")
SETTLING = Scale(0.05, 0.2, "share of trajectories whose answer changes in the last quarter of the steps")
DIVERSITY = Scale(0.1, 0.5, "share of inputs with several solutions for which the trajectories find at most one")
DECAY = Scale(0.05, 0.15, "accuracy of the prior at its best three successive evaluations minus that at the last three")
MIN_PAIRS = 5  # a verdict needs at least 5 pairs whose two estimates are both trusted
LOW_RECONSTRUCTION = 0.5  # nats: below it the guide has nothing to add, and a small KL does not mean collapse


def accuracy(share: float) -> Verdict:
    """Judge the share of right samples of the prior on unseen inputs."""
    return Verdict(
        "right answers",
        ACCURACY.level(share),
        f"{share:.3f} of all samples of the prior are right",
        ACCURACY.text,
        "This is the share of trajectories that end in a right answer, on inputs that training never saw.",
    )


def leak(posterior: float, prior: float, prior_on_train: float | None = None) -> Verdict:
    """Judge whether the guide hands over answers that the prior does not find.

    Args:
        posterior: share of pairs whose answer is right under the guide, which is given y.
        prior: share of right samples of the prior on the same unseen inputs.
        prior_on_train: share of right samples of the prior on training inputs; None if not measured. If this share is
            high, the prior has learned the answers; :func:`generalisation` judges whether it fails on unseen inputs.
    """
    gap = posterior - max(prior, prior_on_train or 0.0)
    level = LEAK.level(gap)
    value = f"share of right answers under the guide, which is given y: {posterior:.3f}; under the prior: {prior:.3f}"
    if prior_on_train is not None:
        value += f", on training inputs {prior_on_train:.3f}; the smaller gap is {gap:.3f}"
    meaning = "The prior has learned to find by itself what the guide knows from y."
    if level != GOOD:
        meaning = (
            "The guide hands over answers that the prior does not find: raise the weight of the KL (--beta.start), or "
            "train along the prior's own trajectories (--train.on_policy_depth)."
        )
        if prior_on_train is None:
            meaning += " Or the prior finds them on training inputs only: experiments/diagnose.py measures that."
    return Verdict("leak", level, value, LEAK.text, meaning)


def generalisation(train: float, unseen: float) -> Verdict:
    """Judge how much less accurate the prior is on unseen inputs than on training inputs."""
    level = GENERALISATION.level(train - unseen)
    meaning = "The prior is about as accurate on unseen inputs as on training inputs."
    if level != GOOD:
        meaning = "The prior has memorised training inputs: train on more inputs, or use symmetries (--train.augment)."
    value = f"share of right samples on training inputs: {train:.3f}; on unseen inputs: {unseen:.3f}"
    return Verdict("generalisation", level, value, GENERALISATION.text, meaning)


def collapse(kl: float, reconstruction: float) -> Verdict:
    """Judge whether the guide adds information, by the terms of the full bound (Eq. 13), nats per input."""
    is_low = reconstruction < LOW_RECONSTRUCTION
    level = GOOD if is_low else COLLAPSE.level(kl)
    value = f"KL {kl:.2f}, reconstruction {reconstruction:.2f} nats per input"
    threshold = f"{COLLAPSE.text}; good too if the reconstruction is under {LOW_RECONSTRUCTION:g} nats"
    if is_low:
        meaning = "The decoder is sure of y at the end of the trajectory, so the trajectory carries all that it needs."
    elif level == GOOD:
        meaning = "The trajectory carries the information in y that x does not give."
    else:
        meaning = (
            "The guide adds little or nothing and leaves the answer to the decoder: the KL has collapsed. Lower "
            "its weight (--beta.start), or raise it later (--beta.target)."
        )
    return Verdict("collapse", level, value, threshold, meaning, GUIDE)


def bound(excess: float) -> Verdict:
    """Judge how far the full bound (Eq. 13) is below that of a perfect model: -ELBO - log m, nats per input."""
    return Verdict(
        "bound",
        BOUND.level(excess),
        f"-ELBO minus log m is {excess:.2f} nats",
        BOUND.text,
        "This is the loss of guide and model together. A perfect model with an exact guide loses 0.",
        GUIDE,
    )


def evenness(summary: dict[str, Any], coverage: float, limit: float) -> Verdict:
    """Judge whether the solutions of an input are equally frequent, by the summary of ``calibration.Uniformity``."""
    if not summary["tested"]:
        return Verdict(
            "evenness",
            UNKNOWN,
            "no input with several solutions has two right samples",
            EVENNESS.text,
            "There are no frequencies to compare.",
        )
    return Verdict(
        "evenness",
        EVENNESS.level(summary["uneven"]),
        f"{summary['uneven']:.2f}: total variation {summary['excess']:+.3f} above perfect sampling; "
        f"{summary['rejected']} of {summary['tested']} inputs are uneven beyond chance (false discovery rate "
        f"{summary['level']:.0%}); coverage {coverage:.3f}, i.i.d. limit {limit:.3f}",
        EVENNESS.text,
        "If good, the frequencies of right samples can be read as p(y|x), which is uniform over an input's solutions.",
    )


def settling(share: float) -> Verdict:
    """Judge the share of trajectories whose answer changes in the last quarter of the steps."""
    return Verdict(
        "settled",
        SETTLING.level(share),
        f"{share:.3f} of the trajectories still change their answer",
        SETTLING.text,
        "If many trajectories still change their answer at the end, go deeper (--depth).",
    )


def decay(recent: float, peak: float) -> Verdict:
    """Judge how far the prior's accuracy has fallen in training, from its best three evaluations to the last three."""
    return Verdict(
        "decay",
        DECAY.level(peak - recent),
        f"accuracy at the best evaluations {peak:.3f}, at the last {recent:.3f}",
        DECAY.text,
        "If the prior got worse while the bound improved, the model overfits, or the guide has begun to leak.",
    )


def importance_weights(summary: dict[str, Any]) -> Verdict:
    """Judge the importance weights of the guide, by the summary of ``evidence.Evidence``."""
    khat_above = summary["khat_above"]
    return Verdict(
        "importance weights",
        KHAT.level(khat_above),
        f"k-hat is above {summary['khat_limit']:.2f} for {khat_above:.2f} of the pairs; median effective sample size "
        f"{summary['ess_median']:.0f} of {summary['guide_samples']}",
        KHAT.text,
        "If good, the guide covers the posterior of the program well enough for importance weights. If not, use the "
        "prior's estimate.",
        ESTIMATES,
    )


def estimate(summary: dict[str, Any]) -> Verdict:
    """Judge whether pairs have a trusted estimate of log p(y|x), by the summary of ``evidence.Evidence``."""
    choices = ", ".join(f"{name} for {count}" for name, count in summary["believed"].items() if count)
    return Verdict(
        "estimate",
        NEITHER.level(summary["believed"]["neither"] / summary["pairs"]),
        f"estimates to believe for {summary['pairs']} pairs: {choices}",
        NEITHER.text,
        "Importance weights are trusted if k-hat is low enough, and prior Monte Carlo if its effective sample size is "
        "at least ten. If the two agree, the one with the smaller error is believed. If they differ, the greater one "
        "is believed if it is trusted: the smaller one has missed some of the probability.",
        ESTIMATES,
    )


def agreement(summary: dict[str, Any]) -> Verdict:
    """Judge whether importance weights and prior Monte Carlo agree, by the summary of ``evidence.Evidence``."""
    num_comparable = summary["both_trusted"]
    return Verdict(
        "two estimates",
        AGREEMENT.level(summary["agree"] / num_comparable) if num_comparable >= MIN_PAIRS else UNKNOWN,
        f"both estimates can be trusted for {num_comparable} of {summary['pairs']} pairs and agree within three "
        f"standard errors for {summary['agree']} of them",
        f"{AGREEMENT.text}; not measured for fewer than {MIN_PAIRS} pairs",
        "The two estimates share no draws. If they agree, both are likely to be right.",
        ESTIMATES,
    )


def likelihood(log_p: float, error: float | None, log_m: float, untrusted_share: float) -> Verdict:
    """Judge the likelihood of uniformly drawn solutions.

    Args:
        log_p: mean of the believed estimates of log p(y|x), nats.
        error: standard error of log p + log m over the pairs; None if the pairs share their draws.
        log_m: mean of log m over the same inputs, where m is the number of solutions of an input.
        untrusted_share: share of pairs without a trusted estimate. If it is large, the verdict is ``not measured``.
    """
    return Verdict(
        "likelihood",
        LIKELIHOOD.level(-log_p - log_m) if untrusted_share <= NEITHER.good else UNKNOWN,
        f"log p(y|x) is {log_p:.2f} nats on average, that of a perfect model {-log_m:.2f}"
        + (f" (standard error of the difference {error:.2f})" if error is not None else ""),
        LIKELIHOOD.text,
        "This is the distance of the model, without its guide, from the uniform distribution over the solutions.",
    )


def ranks(deviations: dict[str, float], band: float, data: int) -> Verdict:
    """Judge by simulation-based calibration whether the guide is the posterior of data that the program generates.

    Args:
        deviations: summary of a trajectory -> largest deviation of the distribution of its ranks from uniform.
        band: a threshold: in 95 % of simulations with as many data, the deviations of uniform ranks are below it.
        data: the number of data.
    """
    largest = max(deviations, key=lambda name: deviations[name])
    level = RANKS.level(deviations[largest])
    if level != GOOD and deviations[largest] <= band:
        level = UNKNOWN  # even uniform ranks of so few data can deviate this much
    return Verdict(
        "ranks under the guide",
        level,
        f"{deviations[largest]:.3f} ({largest}); uniform ranks of {data} data stay within {band:.3f}",
        f"{RANKS.text}; not measured if uniform ranks deviate as much",
        "If good, the guide's trajectories are those of the program's posterior (simulation-based calibration). Bounds "
        "and importance weights depend on the guide; the prior's samples do not.",
        GUIDE,
    )


def diversity(share: float, inputs: int) -> Verdict:
    """Judge whether trajectories end in different answers.

    Args:
        share: among the inputs with several solutions, the share of those for which at most one solution is found.
        inputs: the number of inputs with several solutions.
    """
    if not inputs:
        return Verdict(
            "diversity",
            UNKNOWN,
            "no input is known to have several solutions",
            DIVERSITY.text,
            "If an input has one solution, all trajectories should end in it.",
        )
    return Verdict(
        "diversity",
        DIVERSITY.level(share),
        f"for {round(share * inputs)} of {inputs} inputs with several solutions the trajectories find at most one",
        DIVERSITY.text,
        "If all trajectories of an input end in one solution, the guidance decides nothing, and more samples do not "
        "help.",
    )


def image_quality(score: float, real: float) -> Verdict:
    """Judge the Inception score of samples against that of real images, by the classifier in module ``digits``."""
    return Verdict(
        "likeness",
        QUALITY.level(score / real),
        f"Inception score {score:.2f}, of real images {real:.2f}",
        QUALITY.text,
        "If good, a classifier recognises clear and varied digits in the samples.",
    )


def copies(distance: float, real: float) -> Verdict:
    """Judge memorisation by the mean number of pixels that differ from the nearest training image."""
    return Verdict(
        "copies",
        COPIES.level(distance / real),
        f"{distance:.1f} pixels differ from the nearest training image, for real images {real:.1f}",
        COPIES.text,
        "If samples are much nearer to training images than real images are, they have been memorised.",
    )


def from_metrics(
    metrics: dict[str, Any],
    validation_history: dict[str, float],
    uniformity: dict[str, Any],
    accuracy_on_train: float | None = None,
) -> list[Verdict]:
    """Return the verdicts that follow from the metrics of ``results.json``.

    Args:
        metrics: the metrics of ``results.json``.
        validation_history: accuracies of the prior during training; empty if there were no evaluations.
        uniformity: the summary of ``calibration.Uniformity``; empty if not all solutions are known, or each input has
            only one solution.
        accuracy_on_train: share of right samples of the prior on training inputs; None if not measured.
    """
    verdicts = []
    prior, posterior = metrics.get("sample_accuracy"), metrics.get("posterior_accuracy")
    if prior is not None:
        verdicts.append(accuracy(prior))
    if prior is not None and posterior is not None:
        verdicts.append(leak(posterior, prior, accuracy_on_train))
    if prior is not None and accuracy_on_train is not None:
        verdicts.append(generalisation(accuracy_on_train, prior))
    if metrics.get("kl") is not None:  # only a model with a guide has a KL
        verdicts.append(collapse(metrics["kl"], metrics["reconstruction"]))
        if metrics.get("excess") is not None:
            verdicts.append(bound(metrics["excess"]))
    if "inception_score" in metrics:
        verdicts.append(image_quality(metrics["inception_score"], metrics["inception_score_real"]))
        verdicts.append(copies(metrics["nearest_distance"], metrics["nearest_distance_real"]))
    if uniformity:
        verdicts.append(evenness(uniformity, metrics["coverage"], metrics["coverage_limit"]))
    if metrics.get("unsettled") is not None:
        verdicts.append(settling(metrics["unsettled"]))
    if "recent_accuracy" in validation_history:
        verdicts.append(decay(validation_history["recent_accuracy"], validation_history["peak_accuracy"]))
    return verdicts


def worst_level(verdicts: Iterable[Verdict]) -> str:
    """Return the worst level among the verdicts that were measured."""
    levels = [v.level for v in verdicts if v.level != UNKNOWN]
    return max(levels, key=LEVELS.index) if levels else UNKNOWN
