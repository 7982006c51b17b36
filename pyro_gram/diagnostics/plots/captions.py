"""How to read each figure of a report, in one sentence or two."""

from __future__ import annotations

READINGS = {  # name -> title, reading
    "training": (
        "Training",
        "Left: the two terms of the loss; beta rises once the reconstruction is under its target. Middle: both bounds "
        "should rise together (Fig. 8 of the paper). Right: trajectories of the prior, which never saw an answer.",
    ),
    "leak": (
        "Guide and prior over training",
        "What the guide says of y must become what the prior finds by itself: on validation inputs, which training has "
        "not seen, the curves should meet, and the gap between them come down into the green.",
    ),
    "solved": (
        "Answers",
        "Held-out inputs and the answers that the prior's trajectories end in, most frequent first. Several different "
        "valid answers in one row are what a generative reasoner is for.",
    ),
    "samples": ("Samples", "Draws of p(x), not chosen: each the end of one trajectory from z_0."),
    "coverage_by_solutions": (
        "Coverage by number of solutions",
        "A perfectly calibrated sampler follows the dotted line on the left and stays at 1 on the right.",
    ),
    "evenness": (
        "Evenness over the solutions",
        "Left: how uneven the right samples of each input are, beside what perfect sampling of as many would show. "
        "Middle: p-values of a test of each input; a straight line is uniform sampling. Right: coverage of each input "
        "against its i.i.d. limit.",
    ),
    "neighbours": (
        "Nearest training images",
        "Samples, each beside the training image nearest to it: a sample that equals its neighbour is remembered, not "
        "made.",
    ),
    "formation": (
        "Answers forming",
        "Answers settle over the supervision steps; rows that end differently are different solutions.",
    ),
    "animation": (
        "Answers forming, animated",
        "The same trajectories, a supervision step a frame.",
    ),
    "terms": (
        "What the guide adds, by transition",
        "The KL is what the guide says of y at each transition; where the guide's guidance is as large as the prior's, "
        "it says nothing any more.",
    ),
    "evidence": (
        "log p(y|x) from both ends",
        "Left: bounds that rise with the number of draws towards the dashed lines. Middle: the two estimates of each "
        "pair should meet within their bars. Right: k-hat of each pair; above the line its weights cannot be "
        "trusted.",
    ),
    "evidence_prior": (
        "log p(y|x) by prior Monte Carlo",
        "Each pair's estimate, and how many draws weigh in its mean: below the line it is that of a few lucky ones.",
    ),
    "terms_prior": ("Scale of the guidance, by transition", "How strongly each transition is steered."),
    "ranks": (
        "Ranks under the guide",
        "Data are drawn from the program itself, so that the true trajectory is known: its rank among the guide's is "
        "uniform, and each line inside its band, where the guide is the posterior. A hump on one side means a shift; "
        "one on either side a guide too narrow (first above) or too wide (first below).",
    ),
    "landscape": (
        "Trajectories of one input",
        "The first two principal components of h. The background is the loss, interpolated between the states that "
        "were visited; trajectories of the prior start at z_0 and end in the answers that the colours tell apart.",
    ),
    "attractors": (
        "Where trajectories end, and when they part",
        "How many different answers the trajectories of an input end in, how soon they have settled, and from which "
        "step on those that end differently are apart.",
    ),
    "deciding": (
        "Which sites decide",
        "Trajectories are run again with part of their guidance kept and the rest drawn anew: where keeping a little "
        "more makes the answer the same again, there it was decided.",
    ),
}

SHOWS = {  # name -> the verdicts that the figure shows
    "training": ("decay",),
    "leak": ("leak",),
    "solved": ("right answers", "generalisation"),
    "samples": ("right answers", "likeness", "copies"),
    "coverage_by_solutions": ("evenness",),
    "evenness": ("evenness",),
    "neighbours": ("copies",),
    "formation": ("settled",),
    "animation": ("settled",),
    "terms": ("collapse",),
    "terms_prior": (),
    "evidence": ("estimate", "importance weights", "two estimates", "likelihood", "bound"),
    "evidence_prior": ("estimate", "likelihood"),
    "ranks": ("ranks under the guide",),
    "landscape": ("diversity",),
    "attractors": ("settled", "diversity"),
    "deciding": ("diversity",),
}
