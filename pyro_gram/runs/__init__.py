"""A run: its directory, its training, what is measured of it, and the report."""
