"""Libraries that only their users pay for: each worker of pytest-xdist imports every test file."""

import importlib


class Late:
    """A module that is imported when something of it is asked for."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        if name.startswith("_"):  # pytest asks everything in a test file whether it is a test
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)
