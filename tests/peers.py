"""Peer libraries, for tests that compare with them: where one is missing, what needs it is skipped and says so."""

from types import ModuleType

import pytest

from sod_ops import _peers


def import_peer(name: str) -> ModuleType:
    """A peer's module. In a function, the test is skipped without it; at a module's top, all its tests are."""
    try:
        return _peers.import_peer(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        pytest.skip(f"{error.name} is not installed", allow_module_level=True)
