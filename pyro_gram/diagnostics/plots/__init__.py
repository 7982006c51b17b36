"""Figures, one module for each subject. Each function returns a matplotlib Figure or writes one file."""
