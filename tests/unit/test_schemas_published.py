"""The folder `schemas/` is what the code publishes."""

from __future__ import annotations

from pathlib import Path

from cliffstore.schema import main, published

SCHEMAS = Path(__file__).parents[2] / "schemas"


def test_folder_holds_the_published_contracts_and_nothing_else() -> None:
    held = {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.iterdir()}
    assert held == published(), "run `python -m cliffstore.schema schemas` and commit the result"


def test_writing_the_folder_gives_the_published_contracts(tmp_path: Path) -> None:
    main(str(tmp_path / "schemas"))
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "schemas").iterdir()} == published()
