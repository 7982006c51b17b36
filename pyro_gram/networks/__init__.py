"""Plain torch over ``[..., L, D]``: nothing here knows of Pyro, of tasks, or of training."""
