"""An alias, for `uvicorn ws_chat.app:app`: the application with the settings of the environment."""

from ws_chat.server.app import __getattr__ as __getattr__
