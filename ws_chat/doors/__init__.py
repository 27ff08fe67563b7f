"""Where callers come in: bytes in, a decision from the session, bytes out."""
