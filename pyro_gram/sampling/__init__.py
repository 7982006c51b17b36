"""Trajectories of the prior: roll-outs, how their draws spread, tempering, filtering, and the choice of an answer."""
