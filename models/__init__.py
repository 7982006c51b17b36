"""Models and priors. Import them from ``pyro_gram.models``."""

if __name__ == "models":  # a second import would replace each class in the registry by a copy
    raise ImportError("import this package as pyro_gram.models: it has no other name")
