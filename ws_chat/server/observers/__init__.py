"""Metrics, logs and traces, made from the events of the relay."""
