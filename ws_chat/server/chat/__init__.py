"""The chat protocol over WebSocket and SSE."""
