"""The contract of models, priors and guides; the sites of programs; bounds and importance weights."""
