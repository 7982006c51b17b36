"""Metrics, InferenceData, figures and the report. ``inference_data`` is the only module that imports ArviZ."""
