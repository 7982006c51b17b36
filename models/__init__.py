"""Models and priors. Import them from ``pyro_gram.models``."""

if __name__ == "models":  # under a second name, a second copy of each class would replace the first in the registry
    raise ImportError("import this package as pyro_gram.models: it has no other name")
