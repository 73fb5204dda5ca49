"""Reading vectors of one layer: through `Store.activations`, through SQL, by raw tensorstore, and from `.pt` files.

usage: python benchmarks/gather.py [--rows 100000] [--few 1000] [--store-rows 425984] [--width 576] [--rounds 5]
                                   [--pt-layers 4] [--no-pt]

The store is made up (tests/vector_store.py): one layer of bfloat16, units of 32,768 rows, 64 tokens an example. Sides
are timed in turn, in every round; seconds, of the clock and of all processors, are medians over rounds. Every side
starts with no decoded chunk, on an array or a store that has just been opened (opening is not counted), and with the
files in the memory of the operating system. What each side gives is compared with the others' once.

Raw tensorstore is `array[rows].read().result()` on the same array with a context of its own, for the bits that are
stored, and with a conversion to float32 in NumPy, which is what the store's sides give unless they say `bits`; SQL
gives an Arrow table, the others an array. A ratio is raw's time over the side's, so that 1 is as fast; first against
raw bits, then against raw float32.

`.pt` files hold 16 prompts each, as a loop over batches with torch.save leaves them, and are loaded whole for any row
in them: with this layer alone, and with `--pt-layers` layers. They are not compressed.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import tensorstore as ts
import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from vector_store import VectorStore  # noqa: E402

from cliffstore.run.store import Store  # noqa: E402
from cliffstore.store import gather, layout  # noqa: E402
from cliffstore.store.objects import ObjectStore  # noqa: E402

UNIT_ROWS, TOKENS, PROMPTS_IN_A_FILE, SCAN_ROWS = 32_768, 64, 16, 8_192
BITS, WIDE = "raw tensorstore, bits", "raw tensorstore, float32"
Found = np.ndarray | pa.Table
Side = Callable[[], Callable[[], Found]]
"""Opens what is read, and returns what is timed."""


def wide(bits: np.ndarray) -> np.ndarray:
    """Return bfloat16 bits as float32, as NumPy users do it."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Sides:
    """The ways to read one array."""

    def __init__(self, url: str, pt: dict[str, list[Path]]) -> None:
        self.url, self.pt = url, pt
        self.key = layout.array("main", "resid_post", 0)
        self._store: Store | None = None
        self.n_rows, self.width = self.array().shape

    def array(self) -> ts.TensorStore:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{self.url}/{self.key}/"}}
        return ts.open(spec, open=True, context=ts.Context({})).result()

    def store(self) -> Store:
        """Return the store, newly opened; the one before is closed."""
        if self._store is not None:
            self._store.close()
        self._store = Store(self.url)
        self._store.sql("SELECT 1").fetchall()
        return self._store

    def choice(self, n: int) -> str:
        """Return a condition of SQL that about `n` random rows meet."""
        return f"hash(t.row) % {self.n_rows} < {n}"

    def rows(self, n: int) -> np.ndarray:
        found = self.store().sql(f"SELECT t.row FROM tokens t WHERE {self.choice(n)}").fetchnumpy()["row"]
        return np.sort(np.asarray(found, dtype=np.int64))

    def random(self, n: int) -> dict[str, Side]:
        """Return the ways to read about `n` random rows; all give them in the order of rows, or shuffled."""
        rows_N = self.rows(n)
        shuffled_N = np.random.default_rng(0).permutation(rows_N)
        back_N = np.argsort(shuffled_N)
        condition = self.choice(n)

        def of_raw(rows_N: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> Side:
            def opened() -> Callable[[], Found]:
                array = self.array()
                return lambda: convert(array[rows_N].read().result())

            return opened

        def of_store(read: Callable[[Store], Found]) -> Side:
            def opened() -> Callable[[], Found]:
                store = self.store()
                return lambda: read(store)

            return opened

        def of_sql(statement: str) -> Side:
            return of_store(lambda store: store.sql(statement).to_arrow_table())

        sides = {
            BITS: of_raw(rows_N, np.asarray),
            f"{BITS}, shuffled": of_raw(shuffled_N, np.asarray),
            WIDE: of_raw(rows_N, wide),
            "Store.vectors": of_store(lambda store: store.vectors("resid_post", 0, rows_N)),
            "Store.vectors, shuffled": of_store(lambda store: store.vectors("resid_post", 0, shuffled_N)),
            "SQL": of_sql(f"SELECT resid_post(t.row, 0) AS h FROM tokens t WHERE {condition}"),
            "SQL, shuffled": of_sql(
                "SELECT resid_post(row, 0) AS h "
                f"FROM (SELECT t.row FROM tokens t WHERE {condition} ORDER BY hash(t.row))"
            ),
            "SQL, to one number": of_store(
                lambda store: np.array(
                    store.sql(
                        "SELECT sum(array_inner_product(resid_post(t.row, 0), resid_post(t.row, 0))) "
                        f"FROM tokens t WHERE {condition}"
                    ).fetchall()[0]
                )
            ),
        }
        if hasattr(Store, "activations"):

            def chosen(store: Store):  # type: ignore[no-untyped-def]
                return store.activations("resid_post", 0, where=condition, columns=())

            sides["Store.activations"] = of_store(lambda store: chosen(store).numpy())
            sides["Store.activations, bits"] = of_store(lambda store: chosen(store).torch().view(torch.uint16).numpy())

            def vectors_alone() -> Callable[[], Found]:
                return chosen(self.store()).numpy

            sides["Store.activations, its .numpy() alone"] = vectors_alone
        for name, files in self.pt.items():
            sides[name] = self.of_files(files, rows_N)
        self._agree(sides, wide(sides[BITS]()()), back_N)
        return sides

    def of_files(self, files: list[Path], rows_N: np.ndarray) -> Side:
        in_a_file = PROMPTS_IN_A_FILE * TOKENS
        ends = np.searchsorted(rows_N, np.arange(len(files) + 1) * in_a_file)

        def read() -> np.ndarray:
            found = np.empty((len(rows_N), self.width), dtype=np.uint16)
            for number, file in enumerate(files):
                place = slice(ends[number], ends[number + 1])
                own = rows_N[place] - number * in_a_file
                if len(own):
                    found[place] = torch.load(file, weights_only=True)["resid_post.0"].view(torch.uint16).numpy()[own]
            return wide(found)

        return lambda: read

    def scans(self) -> dict[str, Side]:
        """Return the ways to read the whole layer. In batches, where they are not said to be whole."""
        ranges = [(first, min(first + SCAN_ROWS, self.n_rows)) for first in range(0, self.n_rows, SCAN_ROWS)]

        def raw(convert: Callable[[np.ndarray], np.ndarray]) -> Side:
            def opened() -> Callable[[], Found]:
                array = self.array()

                def read() -> np.ndarray:
                    return drained(convert(array[first:last].read().result()) for first, last in ranges)

                return read

            return opened

        def whole() -> Callable[[], Found]:
            array = self.array()
            return lambda: array.read().result()

        def scan(dtype: str | None) -> Side:
            def opened() -> Callable[[], Found]:
                arrays = self.store().reader.arrays
                return lambda: drained(gather.scan(arrays, self.key, ranges, dtype))

            return opened

        def sql() -> Callable[[], Found]:
            store = self.store()
            return lambda: np.array(store.sql("SELECT sum(resid_post(row, 0)[1]) FROM tokens").fetchall()[0])

        sides: dict[str, Side] = {
            f"{BITS}, whole": whole,
            BITS: raw(np.asarray),
            WIDE: raw(wide),
            "gather.scan, bits": scan(None),
            "gather.scan": scan("bfloat16"),
            "SQL, to one number": sql,
        }
        if hasattr(Store, "activations"):

            def batches(convert: Callable) -> Side:
                def opened() -> Callable[[], Found]:
                    chosen = self.store().activations("resid_post", 0, columns=())
                    return lambda: drained(map(convert, chosen.batches(SCAN_ROWS)))

                return opened

            sides["Store.activations, .batches(), bits"] = batches(lambda batch: batch)
            sides["Store.activations, .batches()"] = batches(lambda batch: batch.numpy())
        for name, files in self.pt.items():
            sides[name] = lambda files=files: lambda: drained(torch.load(file, weights_only=True) for file in files)
        return sides

    def _agree(self, sides: dict[str, Side], expected: np.ndarray, back_N: np.ndarray) -> None:
        for name, side in sides.items():
            found = side()()
            if name.endswith("one number"):
                np.testing.assert_allclose(found[0], float((expected.astype(np.float64) ** 2).sum()), rtol=1e-4)
                continue
            if isinstance(found, pa.Table):
                column = found["h"].combine_chunks()
                found = column.flatten().to_numpy().reshape(len(column), -1)
            found = wide(found) if found.dtype == np.uint16 else found
            if name == "SQL, shuffled":
                assert len(found) == len(expected), name
                continue
            np.testing.assert_array_equal(found[back_N] if "shuffled" in name else found, expected, err_msg=name)


def drained(pieces: Iterable[object]) -> np.ndarray:
    """Take one piece after another, and keep none."""
    for _ in pieces:
        pass
    return np.zeros(0)


def measure(sides: dict[str, Side], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median seconds of each side, and those of the processor."""
    seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(rounds):
        names = list(sides)
        np.random.default_rng(number).shuffle(names)
        for name in names:
            read = sides[name]()
            gc.collect()  # what the last side has left
            begin, processor = time.perf_counter(), time.process_time()
            found = read()
            seconds[name].append((time.perf_counter() - begin, time.process_time() - processor))
            del read, found
    return {name: tuple(map(statistics.median, zip(*seconds[name], strict=True))) for name in sides}


def table_of(title: str, found: dict[str, tuple[float, float]], n_rows: int, bits: str) -> Table:
    """Return seconds, rows a second and ratios of seconds."""
    table = Table("way", "seconds", "processor", "rows/s", "x raw bits", "x raw float32", title=title)
    for name, (seconds, processor) in found.items():
        ratios = (f"{found[against][0] / seconds:.2f}" for against in (bits, WIDE))
        table.add_row(name, f"{seconds:.3f}", f"{processor:.3f}", f"{n_rows / seconds:,.0f}", *ratios)
    return table


def write_files(store: VectorStore, folder: Path, layers: int) -> list[Path]:
    """Write the rows of every 16 prompts into a file, of as many layers (all alike, but for the reader)."""
    folder.mkdir()
    files = []
    in_a_file = PROMPTS_IN_A_FILE * TOKENS
    for unit in range(store.n_units):
        stored = torch.from_numpy(store.stored_of(0, unit)).view(torch.bfloat16)
        for first in range(0, len(stored), in_a_file):
            files.append(folder / f"batch-{len(files):05d}.pt")
            part = stored[first : first + in_a_file]
            torch.save({f"resid_post.{layer}": part.clone() for layer in range(layers)}, files[-1])
    return files


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    load = Path("/proc/loadavg").read_text().split()[0]
    return (
        f"{len(names)} x {names[0]}, load {load}, {platform.platform()}, Python {platform.python_version()}, "
        f"tensorstore {version('tensorstore')}, duckdb {duckdb.__version__}, "
        f"numpy {np.__version__}, torch {torch.__version__}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--store-rows", type=int, default=13 * UNIT_ROWS)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pt-layers", type=int, default=4)
    parser.add_argument("--no-pt", action="store_true")
    given = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        store = VectorStore(
            max(given.store_rows // UNIT_ROWS, 1), UNIT_ROWS, given.width, 1, tokens=TOKENS, dtype="bfloat16"
        )
        begin = time.perf_counter()
        url = f"{folder}/store"
        store.make(ObjectStore(url))
        pt: dict[str, list[Path]] = {}
        if not given.no_pt:
            for layers in sorted({1, given.pt_layers}):
                pt[f".pt files of {layers} layers"] = write_files(store, Path(folder) / f"pt-{layers}", layers)
        sides = Sides(url, pt)
        console.print(f"{machine()}; made in {time.perf_counter() - begin:.0f} s")
        what = f"of {sides.n_rows:,} x {given.width} bfloat16, {given.rounds} rounds"
        for n in (given.rows, given.few):
            n_found = len(sides.rows(n))
            found = measure(sides.random(n), given.rounds)
            console.print(table_of(f"{n_found:,} random rows {what}", found, n_found, BITS))
        found = measure(sides.scans(), given.rounds)
        fastest = min((name for name in found if name.startswith(BITS)), key=found.__getitem__)
        console.print(table_of(f"all rows {what}", found, sides.n_rows, fastest))


if __name__ == "__main__":
    main()
