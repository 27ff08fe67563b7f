"""Set constants in a program that the tests start: those in TEST_WINDOWS, by module and name (tests/replicas.py)."""

import importlib
import json
import os

for _name, _value in json.loads(os.environ.get("TEST_WINDOWS", "{}")).items():
    _module, _, _constant = _name.rpartition(".")
    setattr(importlib.import_module(f"ws_chat.stores.{_module}"), _constant, _value)
