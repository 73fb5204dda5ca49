"""Links of the documents lead to files and headings that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "docs", "infra", "schemas", "examples", "tests/golden")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def links_of(path: Path) -> list[str]:
    found = _LINK.findall(_FENCED.sub("", path.read_text(encoding="utf-8")))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(path: Path) -> list[str]:
    wrong = []
    for link in links_of(path):
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_every_section_of_the_readme_is_linked_at_its_top() -> None:
    readme = ROOT / "README.md"
    sections = re.findall(r"^## (.+)$", _FENCED.sub("", readme.read_text(encoding="utf-8")), re.MULTILINE)
    linked = [link[1:] for link in links_of(readme) if link.startswith("#")]
    assert len(sections) >= 15
    assert linked == [re.sub(r"[^\w\- ]", "", section.lower()).replace(" ", "-") for section in sections]


def test_what_is_broken_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A, b?\n[a](#a-b) [b](#c) [c](page.md#a-b) [d](gone.md) [e](https://example.org)\n```\n[f](g.md)\n```\n"
    )
    assert broken(page) == ["#c", "gone.md"]
