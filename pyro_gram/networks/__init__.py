"""Networks in plain torch over ``[..., L, D]``: no file here uses Pyro, data or training."""
