"""Set constants in a program that the tests start: those in TEST_WINDOWS, by module and name (tests/support/replicas.py)."""

from __future__ import annotations

import json
import os
import sys
from importlib.machinery import PathFinder

values: dict[str, dict[str, float]] = {}
for place, value in json.loads(os.environ.get("TEST_WINDOWS", "{}")).items():
    module, _, constant = place.rpartition(".")
    values.setdefault(f"ws_chat.stores.{module}", {})[constant] = value


class Finder:
    """Finds the modules in question, and sets their constants as soon as they have been run."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in values:
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def run_and_set(module) -> None:
            run(module)
            assert values[name].keys() <= vars(module).keys(), f"{name} has no such constants: {values[name]}"
            vars(module).update(values[name])

        spec.loader.exec_module = run_and_set
        return spec


sys.meta_path.insert(0, Finder)
