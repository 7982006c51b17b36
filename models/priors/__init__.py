r"""Priors of the stochastic guidance, :math:`p_\theta(\epsilon_t \mid u_t)` (Eq. 8).

A prior is a module from u ``[..., L, D]`` to a distribution with batch shape ``[...]`` and event shape ``[L, D]``.
``PRIORS.get("gaussian")`` imports the file that registers this name. Importing this package imports no prior.

Each line names priors, describes them, and says how the KL of their guides is computed:

- ``gaussian``: the paper's diagonal Gaussian; the KL has a closed form.
- ``noise_only``, ``mean_only``: N(0, sigma) and N(mu, 0) of Table 3b; closed form (``mean_only``: for a fixed scale).
- ``standard``: N(0, I), nothing learned; closed form.
- ``none``: eps = 0, the model is deterministic; there is no KL.
- ``student_t`` (heavy tails), ``mixture`` (several modes), ``flow`` (conditional); the KL is estimated from a draw.
- ``low_rank``: a Gaussian whose covariance spans positions; closed form.
- ``discrete``: categorical codes, straight-through or relaxed; closed form.
"""
