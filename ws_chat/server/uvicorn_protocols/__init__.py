"""Subclasses of uvicorn's protocol classes."""
