r"""Priors of the stochastic guidance, :math:`p_\theta(\epsilon_t \mid u_t)` (Eq. 8).

A prior is a module from u ``[..., L, D]`` to a distribution with batch shape ``[...]`` and event shape ``[L, D]``.
``PRIORS.get("gaussian")`` imports the file that registers a name; this package imports none of them.

| name | guidance | KL to its guides |
|---|---|---|
| ``gaussian`` | the paper's, a diagonal Gaussian | closed |
| ``noise_only``, ``mean_only`` | N(0, sigma) and N(mu, 0) of Table 3b | closed; of ``mean_only`` at a fixed scale |
| ``standard`` | N(0, I), nothing learned | closed |
| ``none`` | eps = 0: the deterministic model | nothing to infer |
| ``student_t``, ``mixture``, ``flow`` | heavy tails; several modes; a conditional normalizing flow | by one draw |
| ``low_rank`` | a Gaussian whose covariance spans positions | closed |
| ``discrete`` | categorical codes, straight-through or relaxed | closed |
"""
