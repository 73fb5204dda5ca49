"""What docs/format.md says is so: a reader that knows only the document reads a real store, seals and vectors alike.

Nothing below uses cliffstore to read, apart from what it is compared with at the end. Zarr is taken apart by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ok, write_jsonl
from format_tables import ELSEWHERE, FORMAT, written
from numcodecs import Blosc
from quick import quick_runs

from cliffstore.store import layout

TEXT = FORMAT.read_text(encoding="utf-8")
SEGMENTS = ("system", "user", "header", "think_open", "think", "think_close", "response", "end")
MISSING = 2**64 - 1
ODD = "\u00dcml\u00e4ute, \U0001f600, a tab\tand \u201cquotes\u201d"


@pytest.fixture(scope="module")
def store(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two corpora and two models, one in bfloat16 with z, and everything that is made of vectors."""
    folder = tmp_path_factory.mktemp("format")
    rows = [
        {
            "id": f"r{n}",
            "prompt": f"{ODD if n % 3 else 'Plain words'} about {n} things.",
            "label": n % 2,
            "note": f"n°{n}" if n % 5 else None,
            **({"thinking": f"Is {n} good?", "response": f"It is {n}."} if n % 4 else {}),
        }
        for n in range(40)
    ]
    first = write_jsonl(folder / "first.jsonl", [*rows[:30], {"id": "empty", "prompt": ""}])
    more = write_jsonl(folder / "more.jsonl", rows[30:])
    acts = folder / "acts"
    with quick_runs():
        ok("extract", first, "--model", tiny_model, "--store", acts, "--unit-rows", "256", "--layers", "1-2")
        ok("extract", more, "--append", "--model", tiny_model, "--store", acts, "--layers", "1-2")
        ok(
            "extract", "--model", tiny_model, "--model-alias", "half", "--dtype", "bfloat16", "--layers", "2",
            "--sites", "resid_post,z", "--store", acts,
        )  # fmt: skip
        ok("probe", "fit", acts, "--name", "p", "--model", "main")
        ok("score", acts, "--probe", "p")
        ok("cliff", acts, "--probe", "p")
        ok("select", acts, "--name", "s", "--top", "5", "--min-plateau", "-1e9")
    return acts


def text_of(value: object, comma: str = ",", colon: str = ":") -> str:
    """Return canonical text by the rules of section 2, or spaced text."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return '"' + "".join(_character(one) for one in value) + '"'
        case list():
            return "[" + comma.join(text_of(one, comma, colon) for one in value) + "]"
        case dict():
            pairs = (f"{text_of(key)}{colon}{text_of(value[key], comma, colon)}" for key in sorted(value))
            return "{" + comma.join(pairs) + "}"
    raise TypeError(value)


def _character(one: str) -> str:
    named = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
    if one in named:
        return named[one]
    if " " <= one <= "~":
        return one
    halves = one.encode("utf-16-be")
    return "".join(f"\\u{int.from_bytes(halves[at : at + 2]):04x}" for at in range(0, len(halves), 2))


def spaced(value: object) -> bytes:
    return text_of(value, ", ", ": ").encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def document(store: Path, key: str) -> dict:
    """Return a document without its seal, which must fit."""
    body = json.loads((store / key).read_bytes())
    seal = body.pop("seal")
    assert seal == sha256(text_of(body).encode()), key
    return body


@dataclass
class Unit:
    """What a plan says of a unit, and its examples and tokens."""

    facts: dict
    examples: list[dict]
    tokens: list[dict]


def units(store: Path) -> Iterator[tuple[dict, Unit]]:
    """Yield each plan with each of its units, in the order of places."""
    plans = sorted(
        (document(store, key) for key in keys(store, r"plans/[^/]+/plan\.json")), key=lambda one: one["place"]
    )
    for plan in plans:
        folder = store / "plans" / plan["plan"]
        for facts in pq.read_table(folder / "units.parquet").to_pylist():
            parts = [folder / kind / f"part-{facts['part']:06d}.parquet" for kind in ("examples", "tokens")]
            read = [pq.ParquetFile(part).read_row_group(facts["row_group"]).to_pylist() for part in parts]
            yield plan, Unit(facts, *read)


def keys(store: Path, pattern: str = ".*") -> list[str]:
    found = (str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
    return sorted(key for key in found if re.fullmatch(pattern, key) and not key.startswith("copies/"))


def frame_by_hand(frame: bytes) -> bytes:
    """Return what a blosc frame holds, by section 4."""
    _, _, flags, typesize, n_bytes, n_block, n_frame = struct.unpack_from("<4B3I", frame)
    assert n_frame == len(frame)
    if flags & 2:
        return frame[16:]
    assert (flags & 1, flags & 16, flags >> 5) == (1, 16, 4)
    found = b""
    for (offset,) in struct.iter_unpack("<I", frame[16 : 16 + 4 * -(-n_bytes // n_block)]):
        n_own = min(n_block, n_bytes - len(found))
        (length,) = struct.unpack_from("<I", frame, offset)
        block = frame[offset + 4 : offset + 4 + length]
        block = block if length == n_own else pa.Codec("zstd").decompress(block, n_own).to_pybytes()
        found += np.frombuffer(block, np.uint8).reshape(typesize, -1).T.tobytes()
    return found


class Array:
    """One array, read by the rules of section 4."""

    def __init__(self, store: Path, key: str) -> None:
        self.folder, meta = store / key, json.loads((store / key / "zarr.json").read_bytes())
        self.stored_as, self.is_of = meta["data_type"], meta["attributes"]["cliffstore"]["dtype"]
        (sharding,) = meta["codecs"]
        assert sharding["name"] == "sharding_indexed"
        settings = sharding["configuration"]
        assert [one["name"] for one in settings["codecs"]] == ["bytes", "blosc", "crc32c"]
        assert [one["name"] for one in settings["index_codecs"]] == ["bytes", "crc32c"]
        assert settings["index_location"] == "end"
        blosc = settings["codecs"][1]["configuration"]
        self.dtype = np.dtype(self.stored_as)
        assert (blosc["cname"], blosc["clevel"], blosc["shuffle"]) == ("zstd", 1, "shuffle")
        assert blosc["typesize"] == self.dtype.itemsize
        self.shape = meta["shape"]
        self.unit_rows = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
        self.chunk_rows = settings["chunk_shape"][0]
        assert meta["chunk_grid"]["configuration"]["chunk_shape"][1:] == self.shape[1:] == settings["chunk_shape"][1:]
        self.names = meta["dimension_names"]

    def unit(self, unit: int) -> np.ndarray:
        """Return all rows of a unit's object, as stored."""
        content = (self.folder.joinpath("c", str(unit), *("0" for _ in self.shape[1:]))).read_bytes()
        n_chunks = self.unit_rows // self.chunk_rows
        index, check = content[-16 * n_chunks - 4 : -4], content[-4:]
        assert google_crc32c.value(index) == int.from_bytes(check, "little")
        rows = np.zeros((self.unit_rows, *self.shape[1:]), dtype=self.dtype)
        for chunk, (offset, length) in enumerate(struct.iter_unpack("<QQ", index)):
            if (offset, length) != (MISSING, MISSING):
                frame, check = content[offset : offset + length - 4], content[offset + length - 4 : offset + length]
                assert google_crc32c.value(frame) == int.from_bytes(check, "little")
                assert frame_by_hand(frame) == Blosc().decode(frame)
                found = np.frombuffer(Blosc().decode(frame), dtype=self.dtype)
                first = chunk * self.chunk_rows
                rows[first : first + self.chunk_rows] = found.reshape(self.chunk_rows, *self.shape[1:])
        return rows

    def float32(self, stored: np.ndarray) -> np.ndarray:
        if self.is_of == "bfloat16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32)


def test_lists_of_fields_and_columns_are_those_of_the_contracts() -> None:
    assert written(TEXT) == TEXT, "run `python tests/format_tables.py`"


def listed_keys() -> dict[str, re.Pattern[str]]:
    """Return the keys of section 1 as patterns."""
    table = TEXT.partition("| key | what | written |")[2].partition("\n\n")[0]
    patterns = {}
    for shown in re.findall(r"^\| `([^`]+)`", table, re.M):
        parts = [
            r"\d{6,}" if part.endswith(":06>") else r"\d+" if part in ("<n>", "<unit>", "<layer>")
            else ".+" if part == "<key>" else r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}" if part.startswith("<")
            else re.escape(part)
            for part in re.split(r"(<[^>]+>)", shown)
        ]  # fmt: skip
        patterns[shown] = re.compile("".join(parts) + ("(?:/0)?" if "/c/<unit>/0" in shown else ""))
    return patterns


def test_every_key_is_listed_and_every_kind_of_key_is(store: Path) -> None:
    patterns = listed_keys()
    found = [str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()]
    for key in found:
        assert any(pattern.fullmatch(key) for pattern in patterns.values()), key
    samples = {shown: re.sub(r"<[^>]*:06>", "000001", shown) for shown in patterns if not shown.startswith("copies/")}
    samples = {shown: re.sub(r"<(?:unit|layer|digest)>", "1", sample) for shown, sample in samples.items()}
    kinds = {layout.kind_of(re.sub(r"<\w+>", "x", sample)) for sample in samples.values()}
    assert None not in kinds
    assert kinds >= set(layout.KINDS) - set(ELSEWHERE)


def test_documents_are_sealed_and_copies_equal(store: Path) -> None:
    for key in keys(store, r".*\.json"):
        if not key.endswith("zarr.json"):
            assert (store / key).read_text() == json.dumps(
                json.loads((store / key).read_bytes()), sort_keys=True, indent=1
            ) + "\n"
            document(store, key)
    said = "manifest.json plans/order/x plans/x/plan.json captures/x/x probes/x/probe.json probes/x/probe.safetensors"
    assert {layout.kind_of(key) for key in keys(store)} >= {"manifest", "cliffs", "selection", "weights"}, said
    for key in keys(store):
        copy = store / "copies" / key
        assert copy.exists() == (layout.kind_of(key) in layout.COPIED), key
        assert not copy.exists() or copy.read_bytes() == (store / key).read_bytes()


def test_plans_rows_and_their_digests(store: Path) -> None:
    manifest = document(store, "manifest.json")
    unit_rows = manifest["chunking"]["unit_rows"]
    assert (manifest["format_version"], manifest["chunking"]["chunk_rows"]) == (1, 256)
    next_example = 0
    of_first: list[bytes] = []
    plans: dict[str, dict] = {}
    for next_unit, (plan, unit) in enumerate(units(store)):
        plans[plan["plan"]] = plan
        facts = unit.facts
        assert (facts["unit"], facts["row_start"]) == (next_unit, next_unit * unit_rows)
        assert {one["row"] for one in unit.tokens} == set(
            range(facts["row_start"], facts["row_start"] + facts["n_rows"])
        )
        order = [(one["example"], one["position"]) for one in unit.tokens]
        assert order == sorted(order)
        for example in unit.examples:
            assert example["example"] == next_example
            next_example += 1
            own = [token for token in unit.tokens if token["example"] == example["example"]]
            assert all(one["to_decision"] == one["position"] - example["decision"] for one in own)
            known = [example[name] for name in ("id", "prompt", "system", "thinking", "response", "label")]
            further = {"note": example["note"]} if example["note"] is not None else {}
            content = spaced([known, further, example["decision"]])
            content += np.array([one["token_id"] for one in own], dtype="<i4").tobytes()
            content += bytes(SEGMENTS.index(one["segment"]) for one in own)
            assert sha256(content) == example["digest"]
            of_first += [bytes.fromhex(example["digest"])] if plan["place"] == 0 else []
    assert len(plans) == 2
    for name, plan in plans.items():
        place = document(store, f"plans/order/{plan['place']:06d}.json")
        assert (place["plan"], place["n_units"]) == (name, plan["counts"]["units"])
        assert name == f"plan-{plan['digest'][:12]}"
        for path, digest in plan["tables"].items():
            assert sha256((store / "plans" / name / path).read_bytes()) == digest
    first = min(plans.values(), key=lambda one: one["place"])
    skipped = pq.read_table(store / "plans" / first["plan"] / "skipped.parquet").to_pylist()
    assert len(skipped) == 1
    fields = [[one[name] for name in ("id", "source", "location", "reason", "detail")] for one in skipped]
    named = {"template": manifest["tokenizer"]["template_digest"], "tokenizer": manifest["tokenizer"]["digest"]}
    head = spaced([named, first["settings"], unit_rows, fields])
    assert sha256(head + b"".join(of_first)) == first["digest"]


def test_vectors(store: Path) -> None:
    """Every row that a receipt commits, against its digest and against what cliffstore reads."""
    from cliffstore.store.reader import StoreReader

    reader = StoreReader(str(store))
    seen = set()
    for key in keys(store, r"captures/.*"):
        capture = document(store, key)
        prefix = f"receipts/{capture['capture']}/unit-"
        committed = keys(store, rf"{prefix}\d{{6,}}\.json")
        assert committed
        for one in capture["arrays"]:
            array = Array(store, f"activations/{capture['alias']}/{one['site']}/{one['layer']}")
            assert array.names == (["row", "head", "d_head"] if one["site"] == "z" else ["row", "d_model"])
            assert array.shape[1:] == one["shape"]
            assert array.stored_as == ("uint16" if capture["dtype"] == "bfloat16" else capture["dtype"])
            assert array.shape[0] == array.unit_rows * len(list(units(store)))
            seen.add((array.is_of, one["site"]))
            for receipt in (document(store, name) for name in committed):
                whole = array.unit(receipt["unit"])
                rows = whole[: receipt["n_rows"]]
                assert not whole[receipt["n_rows"] :].any()
                assert (
                    sha256(np.ascontiguousarray(rows).tobytes()) == receipt["digests"][f"{one['site']}/{one['layer']}"]
                )
                numbers = np.arange(receipt["n_rows"]) + receipt["row_start"]
                expected = reader.vectors(one["site"], one["layer"], numbers, capture["alias"])
                assert np.array_equal(array.float32(rows), expected)
    assert seen == {("float32", "resid_post"), ("bfloat16", "resid_post"), ("bfloat16", "z")}
    assert sys.byteorder == "little"


def test_probes_scores_and_what_is_made_of_them(store: Path) -> None:
    from safetensors.numpy import load_file

    probe = document(store, "probes/p/probe.json")
    weights = load_file(store / "probes/p/probe.safetensors")
    w, b = weights["w"].astype("<f4"), weights["b"].astype("<f4")
    assert b.shape == (1,)
    assert probe["digest"] == sha256(w.tobytes() + b.tobytes())
    assert probe["file_digest"] == sha256((store / "probes/p/probe.safetensors").read_bytes())
    array = Array(store, f"activations/main/{probe['site']}/{probe['layer']}")
    pairs = []
    for _, unit in units(store):
        number = unit.facts["unit"]
        receipt = document(store, f"scores/p/unit-{number:06d}.json")
        assert receipt["probe_digest"] == probe["digest"]
        path = store / f"scores/p/unit-{number:06d}.parquet"
        assert receipt["digest"] == sha256(path.read_bytes())
        assert pq.read_schema(path).metadata[b"cliffstore.probe_digest"].decode() == probe["digest"]
        pairs.append([number, receipt["digest"]])
        vectors = array.float32(array.unit(number))
        rows = [token["row"] - unit.facts["row_start"] for token in unit.tokens]
        found = pq.read_table(path)["score"].to_numpy()
        assert np.allclose(found, vectors[rows] @ w + b, atol=1e-4)
    cliffs = document(store, "cliffs/p.json")
    assert cliffs["scores"] == sha256(spaced(sorted(pairs)))
    assert cliffs["digest"] == sha256((store / "cliffs/p.parquet").read_bytes())
    assert document(store, "selections/s.json")["digest"] == sha256((store / "selections/s.parquet").read_bytes())
