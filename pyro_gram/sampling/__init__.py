"""Trajectories of the prior: rollouts, draw schemes, tempering, filtering (SMC), and the selection of an answer."""
