"""The wire, shared by server and client. Pure: no event loop, no framework, no clock."""
