"""Scripts that use the package: training, sampling, measuring, and the studies behind the tables."""
