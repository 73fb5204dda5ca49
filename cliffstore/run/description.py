"""What a store holds, in plain values: `cliffstore info`."""

from __future__ import annotations

from cliffstore.store import layout, receipts
from cliffstore.store.intervention_words import in_words
from cliffstore.store.probes import list_probes
from cliffstore.store.reader import StoreReader, compact_ranges
from cliffstore.store.writer import capture_specs


def describe_store(reader: StoreReader) -> dict[str, object]:
    """Return what the store holds, as plain values."""
    manifest = reader.manifest
    plans = [{"plan": plan.plan, "sources": plan.sources, **plan.counts.model_dump()} for plan in reader.plans()]
    captures = []
    for capture in reader.captures():
        specs = capture_specs(capture)
        done = receipts.committed(reader.objects, capture.capture)
        sites = sorted({spec.site for spec in specs})
        captures.append(
            {
                "capture": capture.capture,
                "model": capture.alias,
                "name": capture.model.name,
                "dtype": capture.dtype,
                "sites": {s: compact_ranges(sorted(spec.layer for spec in specs if spec.site == s)) for s in sites},
                "units_extracted": len(done),
                "bytes_per_row": sum(spec.bytes_per_row for spec in specs),
                "interventions": in_words(capture.interventions),
            }
        )
    return {
        "store": reader.url,
        "format_version": manifest.format_version,
        "created": manifest.created,
        "tokenizer": manifest.tokenizer.name,
        "unit_rows": manifest.chunking.unit_rows,
        "plans": plans,
        "captures": captures,
        "probes": [probe.name for probe in list_probes(reader.objects)],
        "scores": reader.objects.folders(layout.SCORES),
        "cliffs": _tables_in(reader, layout.CLIFFS),
        "selections": _tables_in(reader, layout.SELECTIONS),
        "heads": _tables_in(reader, layout.HEADS),
        "experiments": _tables_in(reader, layout.EXPERIMENTS),
    }


def _tables_in(reader: StoreReader, folder: str) -> list[str]:
    return sorted(layout.stem(key) for key in reader.objects.list(folder) if key.endswith(".parquet"))
