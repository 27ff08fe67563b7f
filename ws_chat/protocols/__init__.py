"""uvicorn's WebSocket and HTTP protocols with a direct way out for the frames of a stream.

An ASGI `send` per token costs a wake-up of a task and a walk through several layers. These classes offer the door a
wire, as an extension of the scope: a synchronous write to the transport, and word of when it takes bytes again. All
else stays uvicorn's: handshake, closing, pings, limits. Under any other server the extension is not there, and the door
awaits `send`.
"""
