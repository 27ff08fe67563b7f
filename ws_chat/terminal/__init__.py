"""`ws-chat chat`: a chat in a terminal, and answers for pipes, on the Python client."""
