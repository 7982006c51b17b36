"""Can this posterior be trusted? One verdict a question, each with its figure, its threshold and what it means.

Thresholds are on the size of an effect, not on significance: with enough samples every approximation is significant.
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
        name: the question's short name.
        level: ``good``, ``look closer`` or ``do not trust``; ``not measured`` where there was nothing to measure it by.
        value: what was found, in words and figures.
        threshold: what the levels begin at.
        meaning: what it says about the model, and what to do.
        about: ``SAMPLES``, the answers of the prior; ``ESTIMATES`` of log p(y|x); or ``GUIDE``, the inference network.
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
    """Good up to ``good``, not to be trusted beyond ``bad``; from ``good`` on and below ``bad`` where that is less."""

    good: float
    bad: float
    what: str

    def level(self, value: float) -> str:
        """The level of a value; one that is no number is not to be trusted."""
        if math.isnan(value):
            return BAD
        sign = 1 if self.bad > self.good else -1
        return GOOD if sign * value <= sign * self.good else LOOK if sign * value <= sign * self.bad else BAD

    @property
    def text(self) -> str:
        better, worse = ("up to", "above") if self.bad > self.good else ("from", "below")
        return f"{self.what}: good {better} {self.good:g}, do not trust {worse} {self.bad:g}"


RIGHT = Scale(0.9, 0.5, "right samples")
LEAK = Scale(0.1, 0.5, "right answers under the guide less those of the prior, here or on training inputs")
GENERAL = Scale(0.1, 0.3, "right samples of training inputs less those of unseen ones")
LIKE = Scale(0.8, 0.3, "Inception score over that of real images")
NEAR = Scale(0.7, 0.3, "distance to the nearest training image over that of real images")
COLLAPSE = Scale(1.0, 0.25, "KL of the trajectory, nats per input")
BOUND = Scale(2.0, 8.0, "nats that the ELBO is short of a perfect model's")
EVEN = Scale(0.2, 0.5, "total variation above perfect sampling, of the greatest that there could be")
KHAT = Scale(0.2, 0.5, "share of pairs with a k-hat above what so many draws allow")
AGREE = Scale(0.9, 0.7, "share of pairs whose two estimates agree, of those where both can be trusted")
NEITHER = Scale(0.1, 0.5, "share of pairs where neither estimate can be trusted")
LIKELY = Scale(0.5, 1.5, "nats that log p(y|x) is short of a perfect model's")
RANKS = Scale(0.15, 0.3, "largest deviation of the ranks' distribution from uniform")
SETTLED = Scale(0.05, 0.2, "share of trajectories whose answer still changes in the last quarter")
ONE_END = Scale(0.1, 0.5, "share of inputs with several solutions whose trajectories all end alike")
DECAY = Scale(0.05, 0.15, "accuracy of the prior at its best three successive looks in training, less the last three")
COMPARABLE = 5  # pairs at which both estimates can be trusted, fewer than which say nothing
TOLD = 0.5  # nats of reconstruction below which a small KL is no collapse: there is nothing left to say


def right(accuracy: float) -> Verdict:
    """``accuracy``: right samples among all, of fresh trajectories of the prior on unseen inputs."""
    return Verdict(
        "right answers",
        RIGHT.level(accuracy),
        f"{accuracy:.3f} of all samples of the prior are right",
        RIGHT.text,
        "The share of trajectories that end in a right answer, on inputs that training never saw.",
    )


def leak(posterior: float, prior: float, seen: float | None = None) -> Verdict:
    """Does the guide hand over answers that the prior cannot find?

    Args:
        posterior: pairs whose answer under the guide is right; it has y in sight.
        prior: right samples of the prior on the same inputs, which training has not seen.
        seen: those of the prior on training inputs, where measured. A prior that is right there has not been leaked to;
            that it is wrong elsewhere is another matter (:func:`general`).
    """
    gap = posterior - max(prior, seen or 0.0)
    level = LEAK.level(gap)
    value = f"right with y in sight {posterior:.3f}, without {prior:.3f}"
    if seen is not None:
        value += f", without on training inputs {seen:.3f}: {gap:.3f} less at best"
    meaning = "What the guide says of y, the prior has learned to find by itself."
    if level != GOOD:
        meaning = (
            "The guide hands over answers that the prior does not find: raise the weight of the KL (--beta.start), or "
            "train along the prior's own trajectories (--train.on_policy_depth)."
        )
        if seen is None:
            meaning += " Or the prior finds them on training inputs alone: experiments/diagnose.py tells which."
    return Verdict("leak", level, value, LEAK.text, meaning)


def general(seen: float, unseen: float) -> Verdict:
    """``seen``, ``unseen``: right samples of the prior on inputs of training, and on others."""
    level = GENERAL.level(seen - unseen)
    meaning = "What the prior does on training inputs it does on others."
    if level != GOOD:
        meaning = "The prior has learned training inputs by heart: more of them help, or symmetries (--train.augment)."
    value = f"right samples of training inputs {seen:.3f}, of unseen ones {unseen:.3f}"
    return Verdict("generalisation", level, value, GENERAL.text, meaning)


def collapse(kl: float, reconstruction: float) -> Verdict:
    """Does the guide say anything? ``kl`` and ``reconstruction`` of the full bound (Eq. 13), nats per input."""
    told = reconstruction < TOLD
    level = GOOD if told else COLLAPSE.level(kl)
    value = f"KL {kl:.2f}, reconstruction {reconstruction:.2f} nats per input"
    if told:
        meaning = "At the trajectory's end the decoder is sure of y: what it depends on beside x is decided by then."
    elif level == GOOD:
        meaning = "The trajectory carries what y depends on beside x."
    else:
        meaning = (
            "The guide says little or nothing and leaves the answer to the decoder: the KL has collapsed. Lower "
            "its weight (--beta.start), or raise it later (--beta.target)."
        )
    return Verdict("collapse", level, value, f"{COLLAPSE.text}; or reconstruction under {TOLD:g} nats", meaning, GUIDE)


def bound(excess: float) -> Verdict:
    """``excess``: what the full bound (Eq. 13) is short of a perfect model's, -ELBO - log m, nats per input."""
    return Verdict(
        "bound",
        BOUND.level(excess),
        f"-ELBO less log m is {excess:.2f} nats",
        BOUND.text,
        "How much of the bound is lost to the guide and the model together; 0 is a perfect model with an exact guide.",
        GUIDE,
    )


def even(summary: dict[str, Any], coverage: float, limit: float) -> Verdict:
    """Are the solutions of an input found evenly? ``summary``: of ``calibration.Uniformity``."""
    if not summary["tested"]:
        return Verdict(
            "evenness",
            UNKNOWN,
            "no input with several solutions has two right samples",
            EVEN.text,
            "Nothing to compare.",
        )
    return Verdict(
        "evenness",
        EVEN.level(summary["uneven"]),
        f"{summary['uneven']:.2f}: total variation {summary['excess']:+.3f} above perfect sampling; "
        f"{summary['rejected']} of {summary['tested']} inputs are uneven beyond chance (false discovery rate "
        f"{summary['level']:.0%}); coverage {coverage:.3f}, i.i.d. limit {limit:.3f}",
        EVEN.text,
        "Whether frequencies of right samples can be read as p(y|x): uniform over an input's solutions is the truth.",
    )


def settled(share: float) -> Verdict:
    """``share``: trajectories whose answer changes in the last quarter of the steps."""
    return Verdict(
        "settled",
        SETTLED.level(share),
        f"{share:.3f} of the trajectories still change their answer",
        SETTLED.text,
        "Whether the trajectories have come to rest; if not, go deeper (--depth).",
    )


def decay(recent: float, peak: float) -> Verdict:
    """``recent``, ``peak``: accuracy of the prior on validation inputs, at the last three looks and the best three."""
    return Verdict(
        "decay",
        DECAY.level(peak - recent),
        f"best looks {peak:.3f}, last {recent:.3f}",
        DECAY.text,
        "Whether the prior got worse while the bound got better: overfitting, or a guide that begins to leak.",
    )


def weights(summary: dict[str, Any]) -> Verdict:
    """Do the guide's draws weigh up to p(y|x)? ``summary``: of ``evidence.Evidence``."""
    khat_above = summary["khat_above"]
    return Verdict(
        "importance weights",
        KHAT.level(khat_above),
        f"k-hat above {summary['khat_limit']:.2f} at {khat_above:.2f} of the pairs; median effective sample size "
        f"{summary['ess_median']:.0f} of {summary['guide_samples']}",
        KHAT.text,
        "Whether the guide covers the program's posterior well enough to weigh it by; where not, believe the prior's "
        "estimate.",
        ESTIMATES,
    )


def estimate(summary: dict[str, Any]) -> Verdict:
    """Is there an estimate of log p(y|x) to believe? ``summary``: of ``evidence.Evidence``."""
    believed = ", ".join(f"{name} at {count}" for name, count in summary["believed"].items() if count)
    return Verdict(
        "estimate",
        NEITHER.level(summary["believed"]["neither"] / summary["pairs"]),
        f"to believe at {summary['pairs']} pairs: {believed}",
        NEITHER.text,
        "Importance weights are trusted where k-hat is low enough, prior Monte Carlo where its mean weighs ten draws "
        "or more. Of two that agree the one of the smaller error is believed; of two that differ the greater, if it "
        "can be trusted: the lesser has missed something.",
        ESTIMATES,
    )


def agreement(summary: dict[str, Any]) -> Verdict:
    """Do importance weights and prior Monte Carlo say the same log p(y|x)? ``summary``: of ``evidence.Evidence``."""
    both = summary["both_trusted"]
    return Verdict(
        "two estimates",
        AGREE.level(summary["agree"] / both) if both >= COMPARABLE else UNKNOWN,
        f"both can be trusted at {both} of {summary['pairs']} pairs and agree within three errors at "
        f"{summary['agree']} of them",
        f"{AGREE.text}; not measured at fewer than {COMPARABLE}",
        "Two ways to one number that share no draws: where they agree, both are likely to be right.",
        ESTIMATES,
    )


def likely(log_p: float, error: float | None, log_m: float, neither: float) -> Verdict:
    """How likely are solutions drawn uniformly?

    Args:
        log_p: mean believed log p(y|x), nats.
        error: standard error of log p + log m over the pairs; None where these share their draws.
        log_m: mean log m of the same inputs.
        neither: share of pairs where no estimate can be believed; with many the mean is not known.
    """
    return Verdict(
        "likelihood",
        LIKELY.level(-log_p - log_m) if neither <= NEITHER.good else UNKNOWN,
        f"log p(y|x) {log_p:.2f} on average, a perfect model's {-log_m:.2f} nats"
        + (f" (± {error:.2f} between them)" if error is not None else ""),
        LIKELY.text,
        "How far the model itself, whatever its guide, is from uniform over the solutions.",
    )


def ranks(deviations: dict[str, float], band: float, data: int) -> Verdict:
    """Is the guide the posterior of the program's own data?

    Args:
        deviations: summary of a trajectory -> largest deviation of its ranks' distribution from uniform.
        band: what uniform ranks of as many data stay within.
        data: how many.
    """
    worst = max(deviations, key=lambda name: deviations[name])
    level = RANKS.level(deviations[worst])
    if level != GOOD and deviations[worst] <= band:
        level = UNKNOWN  # of so few data, uniform ranks look as bad
    return Verdict(
        "ranks under the guide",
        level,
        f"{deviations[worst]:.3f} ({worst}); uniform ranks of {data} data stay within {band:.3f}",
        f"{RANKS.text}; not measured where uniform ranks show as much",
        "Whether the guide's trajectories are those of the program's posterior (simulation-based calibration). It says "
        "nothing against the prior's samples: bounds and weights lean on the guide, answers do not.",
        GUIDE,
    )


def diverse(share: float, inputs: int) -> Verdict:
    """``share``: inputs with several solutions, ``inputs`` in all, whose trajectories all end in the same answer."""
    if not inputs:
        return Verdict(
            "diversity",
            UNKNOWN,
            "no input is known to have several solutions",
            ONE_END.text,
            "Where an input has one answer, trajectories ought to end alike.",
        )
    return Verdict(
        "diversity",
        ONE_END.level(share),
        f"at {round(share * inputs)} of {inputs} inputs with several solutions all trajectories end alike",
        ONE_END.text,
        "Whether the guidance decides anything: a prior whose trajectories all end alike has one answer, however many "
        "are asked for.",
    )


def likeness(score: float, real: float) -> Verdict:
    """``score``, ``real``: Inception scores of samples and of real images, by the classifier of ``digits``."""
    return Verdict(
        "likeness",
        LIKE.level(score / real),
        f"Inception score {score:.2f}, of real images {real:.2f}",
        LIKE.text,
        "Whether a classifier sees clear and varied digits in the samples.",
    )


def copies(distance: float, real: float) -> Verdict:
    """``distance``, ``real``: mean of the pixels in which samples and real images differ from training's nearest."""
    return Verdict(
        "copies",
        NEAR.level(distance / real),
        f"{distance:.1f} pixels to the nearest training image, from real ones {real:.1f}",
        NEAR.text,
        "Samples far nearer to training images than real ones are remembered, not made.",
    )


def of_metrics(
    metrics: dict[str, Any], looks: dict[str, float], uniformity: dict[str, Any], seen: float | None = None
) -> list[Verdict]:
    """What ``results.json`` says by itself.

    Args:
        metrics: its metrics.
        looks: of ``evaluate.looks_of``; empty where none were taken.
        uniformity: of ``calibration.Uniformity``; empty where not all solutions are known, or there is but one.
        seen: right samples of the prior on training inputs, where measured.
    """
    found = []
    prior, posterior = metrics.get("sample_accuracy"), metrics.get("posterior_accuracy")
    if prior is not None:
        found.append(right(prior))
    if prior is not None and posterior is not None:
        found.append(leak(posterior, prior, seen))
    if prior is not None and seen is not None:
        found.append(general(seen, prior))
    if metrics.get("kl") is not None:  # there is a guide
        found.append(collapse(metrics["kl"], metrics["reconstruction"]))
        if metrics.get("excess") is not None:
            found.append(bound(metrics["excess"]))
    if "inception_score" in metrics:
        found.append(likeness(metrics["inception_score"], metrics["inception_score_real"]))
        found.append(copies(metrics["nearest_distance"], metrics["nearest_distance_real"]))
    if uniformity:
        found.append(even(uniformity, metrics["coverage"], metrics["coverage_limit"]))
    if metrics.get("unsettled") is not None:
        found.append(settled(metrics["unsettled"]))
    if "recent_accuracy" in looks:
        found.append(decay(looks["recent_accuracy"], looks["peak_accuracy"]))
    return found


def worst(verdicts: Iterable[Verdict]) -> str:
    """The level of the whole: that of the worst verdict which was measured."""
    found = [v.level for v in verdicts if v.level != UNKNOWN]
    return max(found, key=LEVELS.index) if found else UNKNOWN
