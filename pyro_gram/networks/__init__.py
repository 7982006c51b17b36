"""Networks in plain torch for tensors ``[..., L, D]``. No file here uses Pyro, data sets or training code."""
