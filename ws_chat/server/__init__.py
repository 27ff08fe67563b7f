"""The FastAPI application and everything that touches a socket."""
