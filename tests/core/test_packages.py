"""Optional packages: there, not there, or forbidden by an import hook."""

from __future__ import annotations

import sys

import pytest

from edgeopt.core.packages import is_installed


class _Forbids:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "fractions":
            raise ModuleNotFoundError(name=name)


def test_packages_that_are_there_and_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_installed("fractions")
    assert not is_installed("no_such_package_at_all")
    monkeypatch.delitem(sys.modules, "fractions", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Forbids(), *sys.meta_path])
    assert not is_installed("fractions")
    monkeypatch.setitem(sys.modules, "fractions", None)
    assert not is_installed("fractions")
