"""Vectors of a store on disk without cliffstore: `python examples/read_store.py STORE EXAMPLE LAYER [MODEL]`."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import tensorstore as ts


def read_vectors(store, example, layer, site="resid_post", model="main"):
    """Return the positions of an example that are extracted, int [N], and their vectors, float32 [N, width]."""
    root = Path(store)
    if json.loads((root / "manifest.json").read_text())["format_version"] != 1:
        raise ValueError(f"{store} is of another format version")
    plans = [path.parent for path in root.glob("plans/*/plan.json")]  # a plan exists once its document does
    parts = [str(path) for plan in plans for path in plan.glob("tokens/*.parquet")]
    wanted = (ds.field("example") == example) & ds.field("row").is_valid()
    tokens = ds.dataset(parts).to_table(columns=["position", "row"], filter=wanted).sort_by("position")
    position_N, row_N = (np.asarray(tokens[name]) for name in ("position", "row"))
    extracted_N = np.zeros(len(row_N), dtype=bool)
    for path in (root / "captures" / model).glob("*.json"):
        capture = json.loads(path.read_text())
        if any((one["site"], one["layer"]) == (site, layer) for one in capture["arrays"]):
            for receipt in (root / "receipts" / capture["capture"]).glob("unit-*.json"):
                if not receipt.name.endswith(".error.json"):  # a receipt, and nothing else, commits its rows
                    unit = json.loads(receipt.read_text())
                    extracted_N |= (row_N >= unit["row_start"]) & (row_N < unit["row_start"] + unit["n_rows"])
    path = root / "activations" / model / site / str(layer)
    dtype = json.loads((path / "zarr.json").read_text())["attributes"]["cliffstore"]["dtype"]
    array = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}, read=True).result()
    h_ND = array[row_N[extracted_N]].read().result()  # z is [N, heads, d_head]
    bits = h_ND.astype(np.uint32) << 16 if dtype == "bfloat16" else None  # the upper half of a float32
    return position_N[extracted_N], h_ND.astype(np.float32) if bits is None else bits.view(np.float32)


if __name__ == "__main__":
    print(*read_vectors(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), model=(sys.argv[4:] or ["main"])[0]), sep="\n")
