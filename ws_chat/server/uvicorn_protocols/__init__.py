"""Subclasses of uvicorn's protocol classes. Each opens with its invariants, and the tests that hold them."""
