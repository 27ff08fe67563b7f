"""The HTTP/1.1 client on the path of a token: response bodies are pushed to the parser."""
