"""The Responses protocol (`/v1/responses`): another view of the same logs, over WebSocket and HTTP."""
