"""Compute how many trajectories of the prior fit into memory at once."""

from __future__ import annotations

from pyro_gram.errors import UserError

MAX_TRAJECTORIES = 2048  # with 8 positions of 128 channels, these take about 250 MB at most
# A rollout takes a constant amount, and 32 float32 tensors [L, D] for each trajectory. The allocator keeps up to as
# much again, therefore 64 tensors are counted (measured by experiments/bench/bench_solve.py).
TENSORS, CONSTANT_MB = 64, 8.0


def chunk_size(length: int, max_trajectories: int = MAX_TRAJECTORIES) -> int:
    """Return how many trajectories of ``length`` positions may run at once.

    Up to 8 positions, this is ``max_trajectories``. Beyond 8 positions, it falls in proportion to 1 / ``length``.
    """
    return max(1, min(max_trajectories, max_trajectories * 8 // length))


def trajectories_in_memory(memory: float, length: int, width: int) -> int:
    """Return how many trajectories may run at once in ``memory`` MB, not counting the model.

    Args:
        memory: MB.
        length, width: L and D of a state.

    Raises:
        UserError: the memory does not hold one trajectory.
    """
    per_trajectory = TENSORS * 4 * length * width / 2**20
    min_memory = CONSTANT_MB + per_trajectory
    if not memory >= min_memory:
        raise UserError(f"a memory limit of {memory:g} MB does not hold one trajectory: give at least {min_memory:.1f}")
    return int(min((memory - CONSTANT_MB) / per_trajectory, 2**31))
