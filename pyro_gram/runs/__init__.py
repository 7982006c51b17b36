"""A run: its directory, its training, the measurements of its model, and the report."""
