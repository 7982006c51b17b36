"""Figures, by what they show. Each function returns a matplotlib Figure or writes one file."""
