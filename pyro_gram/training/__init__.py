"""Training by deep supervision: the trainer, its configs and schedules, and the halt and value heads."""
