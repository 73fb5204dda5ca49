"""Where a model is, by the name that a store keeps of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cliffstore.run.origins import places_named
from cliffstore.run.shipped_model import shipped_model


def test_names_that_can_be_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places_named("Qwen/Qwen3-0.6B", None) == ["Qwen/Qwen3-0.6B"]
    assert places_named("gpt2", "main") == ["gpt2"]
    assert places_named("model", None) == [], "the last part of a path somewhere else"
    (tmp_path / "model").mkdir()
    assert places_named("model", None) == ["model"]


def test_the_installed_model_is_found_wherever_its_store_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = shipped_model()
    assert places_named(place.name, None) == [str(place)]
    monkeypatch.setattr("cliffstore.run.shipped_model.MODEL_PACKAGE", "no_such_package")
    assert places_named(place.name, None) == []
