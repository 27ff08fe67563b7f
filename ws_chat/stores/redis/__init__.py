"""Logs shared by replicas through Redis."""
