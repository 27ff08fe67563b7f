"""Upstreams: what produces answers."""
