"""The tables of docs/format.md that say what fields documents have, and what columns tables have, from the contracts.

`python tests/format_tables.py` writes them into the document; a test holds the document to it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa

from cliffstore.schema import DOCUMENTS, SEAL, TABLES

FORMAT = Path(__file__).parents[1] / "docs" / "format.md"
ELSEWHERE = ("generation", "generation_receipt")
"""Documents of folders that are no store."""
MEANINGS = {
    "alias": "user's name of the model",
    "arrays": "what is captured, a row of each",
    "attempt": "how many were made, with this one",
    "capture": "name",
    "cliffstore_version": "of what wrote it",
    "decision": "position of the last token before the answer",
    "digest": "",
    "dtype": "bfloat16, float16 or float32",
    "example": "ordinal, dense over all plans",
    "first_example": "its first ordinal",
    "first_unit": "its first unit",
    "id": "the user's, or made from the content",
    "kind": "",
    "layer": "block, from 0",
    "n_think": "tokens of the segment `think`",
    "n_tokens": "",
    "number": "from 0, in the order of plans",
    "part": "of the tables of examples and tokens",
    "plan": "name",
    "position": "from 0",
    "probe": "name",
    "row": "first index of the arrays",
    "row_group": "of that part",
    "row_start": "unit × unit_rows",
    "score": "w·h + b",
    "seconds": "of computing",
    "site": "",
    "skipped": "rows that are left out",
    "token": "its text",
    "unit": "number, over all plans",
    "worker": "host and process",
}
"""What contracts do not say of a name, because it is plain there."""
_TYPES = {"string": "text", "integer": "int", "number": "number", "boolean": "bool", "null": "null"}


def documents() -> str:
    """Return a table for each kind of document."""
    parts: list[str] = []
    shown: dict[str, str] = {}
    for name, document in DOCUMENTS.items():
        if name in ELSEWHERE:
            continue
        schema = document.model_json_schema()
        summary = _one_line((document.__doc__ or "").strip())
        lines = [f"**{name}**: {summary}", "", "| field | type | |", "|---|---|---|"]
        lines += _fields(schema, schema.get("$defs", {}), "", name, shown)
        parts.append("\n".join([*lines, f"| `{SEAL}` | text | see above |"]))
    return "\n\n".join(parts)


def tables() -> str:
    """Return a line for each table."""
    lines = ["| table | columns |", "|---|---|"]
    for name, schema in TABLES.items():
        if not name.startswith("training_set_"):
            columns = ", ".join(f"`{field.name}` {_arrow(field.type)}" for field in schema)
            lines.append(f"| `{name}` | {columns} |")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _fields(schema: dict, defs: dict, prefix: str, document: str, shown: dict[str, str]) -> list[str]:
    """Return a line for each field. An object that another document has as well is described there: see `shown`."""
    lines = []
    for name, field in schema["properties"].items():
        kind, inner, many = _kind(field, defs)
        meaning = field.get("description") or MEANINGS.get(name, "") or _choices(field)
        known = {shown.setdefault(one["title"], document) for one in inner} - {document}
        if known:
            meaning = f"{meaning}; as in {known.pop()}".removeprefix("; ")
            inner = []
        if name not in schema.get("required", ()):
            meaning = f"{meaning}; {_absence(field)}".removeprefix("; ")
        lines.append(f"| `{prefix}{name}` | {kind} | {_escaped(meaning)} |")
        for one in inner:
            lines += _fields(one, defs, f"{prefix}{name}{'[]' if many else ''}.", document, shown)
    return lines


def _kind(field: dict, defs: dict) -> tuple[str, list[dict], bool]:
    """Return the type of a field in words, the objects that it holds, and whether it holds many."""
    if "$ref" in field:
        return "object", [defs[field["$ref"].rpartition("/")[2]]], False
    if "anyOf" in field or "oneOf" in field:
        found = [_kind(one, defs) for one in field.get("anyOf") or field["oneOf"]]
        names = dict.fromkeys(name for name, _, _ in found)
        return " or ".join(names), [one for _, inner, _ in found for one in inner], any(many for _, _, many in found)
    if "enum" in field or "const" in field:
        return "text", [], False
    if field.get("type") == "array":
        kind, inner, _ = _kind(field["items"], defs) if "items" in field else ("value", [], False)
        return f"list of {kind}", inner, True
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"text -> {_kind(values, defs)[0]}" if isinstance(values, dict) else "object", [], False
    return _TYPES.get(str(field.get("type")), "value"), [], False


def _choices(field: dict) -> str:
    """Return the values that a field may have, where the contract lists them."""
    values = field.get("enum") or [field[key] for key in ("const",) if key in field]
    return ", ".join(f"`{value}`" for value in values)


def _absence(field: dict) -> str:
    """Return what it means that an optional field is missing."""
    empty = {"array": [], "object": {}}.get(field.get("type", ""))
    return f"if missing: {json.dumps(field.get('default', empty))}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _arrow(kind: pa.DataType) -> str:
    return "dictionary" if pa.types.is_dictionary(kind) else str(kind)


def written(text: str) -> str:
    """Return the document with the tables as they should be."""
    for name, content in (("documents", documents()), ("tables", tables())):
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda found, content=content: f"{found[1]}\n{content}\n\n{found[2]}", text, flags=re.S)
    return text


if __name__ == "__main__":
    FORMAT.write_text(written(FORMAT.read_text(encoding="utf-8")), encoding="utf-8")
