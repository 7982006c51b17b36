"""Guides' base class, bounds, optimisation, deep supervision, and roll-outs from the prior."""
