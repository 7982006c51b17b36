"""Figures, one module for each subject. Functions named ``*_figure`` return a matplotlib Figure."""
