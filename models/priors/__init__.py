r"""Priors of the stochastic guidance, :math:`p_\theta(\epsilon_t \mid u_t)` (Eq. 8).

A prior is a module from u ``[..., L, D]`` to a distribution with batch shape ``[...]`` and event shape ``[L, D]``.
``PRIORS.get("gaussian")`` imports the file that registers a name; this package imports none of them.

With the name of each prior stands its KL from the guides for it:

- ``gaussian``: the paper's diagonal Gaussian; closed form.
- ``noise_only``, ``mean_only``: N(0, sigma) and N(mu, 0) of Table 3b; closed form, of ``mean_only`` at a fixed scale.
- ``standard``: N(0, I), nothing learned; closed form.
- ``none``: eps = 0, the deterministic model; nothing to infer.
- ``student_t``, ``mixture``, ``flow``: heavy tails; several modes; a conditional flow; estimated from a draw.
- ``low_rank``: a Gaussian whose covariance spans positions; closed form.
- ``discrete``: categorical codes, straight-through or relaxed; closed form.
"""
