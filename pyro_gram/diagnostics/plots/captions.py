"""The caption of each figure of a report: its title, how to read it, and the verdicts that it shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    """The text that tells how to read a figure.

    Attributes:
        title: the title of the figure.
        text: how to read the figure, in a sentence or two.
        verdicts: the names of the verdicts that the figure shows.
    """

    title: str
    text: str
    verdicts: tuple[str, ...] = ()


CAPTIONS = {
    "training": Caption(
        "Training",
        "Left: the two terms of the loss; beta rises once the reconstruction is below its target. Middle: both bounds "
        "should rise together (Fig. 8 of the paper). Right: trajectories of the prior, which are never given y.",
        ("decay",),
    ),
    "leak": Caption(
        "Guide and prior during training",
        "The prior must learn to find by itself what the guide knows from y. On validation inputs the two curves on "
        "the left should meet, and their gap, on the right, should fall into the green band.",
        ("leak",),
    ),
    "solved": Caption(
        "Answers",
        "Held-out inputs and the answers in which the prior's trajectories end, most frequent first. A generative "
        "reasoner finds several valid answers to one input.",
        ("right answers", "generalisation"),
    ),
    "samples": Caption(
        "Samples",
        "Samples of p(x), not selected: each is the end of one trajectory from z_0.",
        ("right answers", "likeness", "copies"),
    ),
    "coverage_by_solutions": Caption(
        "Coverage by number of solutions",
        "A perfectly calibrated sampler follows the dotted line on the left and stays at 1 on the right.",
        ("evenness",),
    ),
    "evenness": Caption(
        "Evenness over the solutions",
        "Left: how uneven the right samples of each input are, compared with as many uniform draws. Middle: "
        "p-values of a test of each input; uniform sampling follows the straight line. Right: coverage of each input "
        "against its i.i.d. limit.",
        ("evenness",),
    ),
    "neighbours": Caption(
        "Nearest training images",
        "Samples, each next to its nearest training image: a sample that equals its neighbour has been memorised.",
        ("copies",),
    ),
    "formation": Caption(
        "Answers forming",
        "Answers settle over the supervision steps. Rows can end in different answers.",
        ("settled",),
    ),
    "animation": Caption(
        "Answers forming, animated",
        "The same trajectories, one supervision step in each frame.",
        ("settled",),
    ),
    "terms": Caption(
        "Information from the guide, by transition",
        "The KL is the information that the guide adds at each transition. The right panel compares the "
        "scale of the guidance under guide and prior: where the two are equal, the guide adds little.",
        ("collapse",),
    ),
    "terms_prior": Caption(
        "Scale of the guidance, by transition", "The scale shows how strongly the guidance steers each transition."
    ),
    "evidence": Caption(
        "Two estimates of log p(y|x)",
        "Left: bounds that rise with the number of draws towards the dashed lines. Middle: the two estimates of each "
        "pair should agree within their error bars. Right: k-hat of each pair; above the line its weights cannot be "
        "trusted.",
        ("estimate", "importance weights", "two estimates", "likelihood", "bound"),
    ),
    "evidence_prior": Caption(
        "log p(y|x) by prior Monte Carlo",
        "The estimate of each pair and its effective sample size: below the line a few lucky draws make up the mean.",
        ("estimate", "likelihood"),
    ),
    "ranks": Caption(
        "Ranks under the guide",
        "The program itself generates the data, so the true trajectory is known. If the guide is the posterior, "
        "the rank of the true trajectory among the guide's is uniform, and each line stays inside its band. A line "
        "on one side of zero means that the guide is shifted. A line that crosses zero means that the guide is too "
        "narrow (first above zero) or too wide (first below).",
        ("ranks under the guide",),
    ),
    "landscape": Caption(
        "Trajectories of one input",
        "The first two principal components of h. The background is the loss, interpolated between visited states; "
        "trajectories of the prior start at z_0, and their colours show the answers in which they end.",
        ("diversity",),
    ),
    "attractors": Caption(
        "Where trajectories end, and when they separate",
        "The number of different answers in which the trajectories of an input end, how soon their answers settle, and "
        "how soon trajectories with different final answers separate.",
        ("settled", "diversity"),
    ),
    "deciding": Caption(
        "Transitions and positions that decide the answer",
        "Trajectories are run again with part of their guidance kept and the rest drawn anew. The share that "
        "ends in the same answer shows which transitions and positions decide it.",
        ("diversity",),
    ),
}
