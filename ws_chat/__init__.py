"""Streams chat-model answers over WebSocket and SSE, from any OpenAI-compatible server."""
