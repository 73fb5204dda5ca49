"""A report as a browser's parser reads it, without a browser: elements, text by section, figures, data."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "link", "input", "br", "img", "hr", "source"}


class ReportPage(HTMLParser):
    """What is on a page.

    Attributes
    ----------
    elements : tag and attributes of each element, in order
    scripts : content of each script element, by its id or its type
    texts : all text of each section, by its id; that of the whole page outside scripts and style under ""
    tables : rows of cells of each table of figures, by the id of its figure
    """

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.style = ""
        self.texts: dict[str, str] = {"": ""}
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)
        self.close()
        assert not self._open, self._open

    @classmethod
    def read(cls, path: Path) -> ReportPage:
        return cls(path.read_text(encoding="utf-8"))

    @property
    def table(self) -> dict[str, Any]:
        return json.loads(self.scripts["table-data"])

    @property
    def tokens(self) -> dict[str, Any]:
        return json.loads(self.scripts["token-data"])

    def tokens_of(self, index: int, probe: str) -> list[dict[str, Any]]:
        """Return the tokens of an example as the page's script has them."""
        packed = self.tokens
        one = packed["examples"][index]
        digits = next(one["digits"] for one in self.table["probes"] if one["name"] == probe)
        steps = one["scores"][probe] or [None] * len(one["tokens"])
        segments = [
            packed["segments"][number]
            for number, n in zip(one["runs"][::2], one["runs"][1::2], strict=True)
            for _ in range(n)
        ]
        return [
            {
                "position": one["first"] + at,
                "token_id": packed["ids"][number],
                "token": packed["texts"][number],
                "segment": segment,
                "score": None if step is None else step / 10**digits,
            }
            for at, (number, step, segment) in enumerate(zip(one["tokens"], steps, segments, strict=True))
        ]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append((tag, attributes))
        figure = self._inside("figure")
        if tag == "tr" and figure is not None:
            self.tables.setdefault(str(figure["id"]), []).append([])
        if tag in ("td", "th") and figure is not None:
            self.tables[str(figure["id"])][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag, f"{opened} is closed by {tag}"

    def handle_data(self, data: str) -> None:
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag == "script":
            name = str(attributes.get("id") or attributes.get("type"))
            self.scripts[name] = self.scripts.get(name, "") + data
        elif tag == "style":
            self.style += data
        else:
            section = self._inside("section")
            for name in {"", str(section["id"]) if section else ""}:
                self.texts[name] = self.texts.get(name, "") + data
            figure = self._inside("figure")
            if figure is not None and self._inside("td") is not None:
                self.tables[str(figure["id"])][-1][-1] += data

    def _inside(self, tag: str) -> dict[str, str | None] | None:
        return next((attributes for name, attributes in reversed(self._open) if name == tag), None)
