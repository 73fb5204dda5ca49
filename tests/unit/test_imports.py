"""The import rule: imports run down the list of DESIGN, section 3, and heavy libraries wait until they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cliffstore"
MODULES = sorted(PACKAGE.rglob("*.py"))
GROUND = "ground"
LAYERS: dict[str, set[str]] = {
    GROUND: set(),
    "corpus": {GROUND},
    "plan": {GROUND, "corpus"},
    "model": {GROUND},
    "store": {GROUND},
    "extract": {GROUND, "corpus", "plan", "model", "store"},
    "analyze": {GROUND, "store"},
    "train": {GROUND, "store"},
    "publish": {GROUND, "store"},
    "run": {GROUND, "corpus", "plan", "model", "store", "extract", "analyze", "train", "publish"},
    "cli": {GROUND, "corpus", "plan", "model", "store", "extract", "analyze", "train", "publish", "run"},
    "demo": {GROUND},
}
"""What each layer may import, besides itself."""
GROUND_MODULES = {
    "__init__", "access", "columns", "config", "errors", "ranks", "records", "schema", "settings",
    "text",
}  # fmt: skip
HEAVY = ("torch", "ray", "duckdb", "transformers", "zarr", "tensorstore", "sklearn", "pyarrow", "numpy")


def _layer(module: str) -> str:
    """Return the layer of a dotted name below the package (`cliffstore.store.objects` -> `store`)."""
    first = [*module.split("."), "", "__init__"][1] or "__init__"
    return GROUND if first in GROUND_MODULES else first


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _only_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(path: Path, *, types: bool) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every import, in functions too; `types` includes those for type checkers."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            # `from cliffstore import store` and `from cliffstore.store import layout` may both name modules
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = (ROOT / whole.replace(".", "/")).with_suffix(".py").exists()
                is_package = (ROOT / whole.replace(".", "/") / "__init__.py").exists()
                yield node.lineno, whole if is_module or is_package else node.module
        pending.extend(
            child for child in ast.iter_child_nodes(node) if types or not _only_types(node) or child in node.orelse
        )


def test_every_folder_has_a_place_in_the_rule() -> None:
    assert {_layer(_name(path)) for path in MODULES} == set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_run_down_only(path: Path) -> None:
    own = _layer(_name(path))
    # the package's own __init__ names its lazy exports for type checkers
    types = path != PACKAGE / "__init__.py"
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {own} must not import {name}"
        for line, name in _imports(path, types=types)
        if name.split(".")[0] == "cliffstore" and _layer(name) not in LAYERS[own] | {own}
    ]
    assert not wrong, "\n".join(wrong)


def test_only_four_modules_import_ray() -> None:
    importers = {
        _name(path) for path in MODULES for _, name in _imports(path, types=True) if name.split(".")[0] == "ray"
    }
    assert importers == {f"cliffstore.run.ray_{name}" for name in ("executor", "metrics", "pool", "tasks")}


def test_rule_finds_what_it_forbids(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import ray.data\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from cliffstore import store\n    from cliffstore.store.objects import ObjectStore\n"
    )
    names = {name for _, name in _imports(module, types=True)}
    assert names == {"ray.data", "typing", "torch", "cliffstore.store", "cliffstore.store.objects"}
    assert {name for _, name in _imports(module, types=False)} == names - {"torch"}
    assert _layer("cliffstore.store") == _layer("cliffstore.store.objects") == "store"
    assert _layer("cliffstore") == _layer("cliffstore.errors") == GROUND


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_import_of_the_package_is_light() -> None:
    assert not _loaded_by("import cliffstore, cliffstore.errors; dir(cliffstore)") & set(HEAVY)


def test_import_of_the_command_line_is_light() -> None:
    """`--help` takes what Python and typer take; whatever else a command needs is imported when it runs."""
    assert not _loaded_by("import cliffstore.cli.main") & {*HEAVY, "altair", "fsspec", "pydantic", "rich", "scipy"}


def test_help_of_the_command_line_is_light() -> None:
    said = (
        "from cliffstore.cli.main import main; import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    )
    assert not _loaded_by(f"{said}    main(['--help'])") & {*HEAVY, "altair", "fsspec", "pydantic", "rich", "scipy"}


def test_opening_a_store_is_light() -> None:
    """Most commands look at a store and fit no probe: scikit-learn and scipy would be almost half of their time."""
    learning = {"torch", "ray", "transformers", "sklearn", "scipy"}
    assert not _loaded_by("from cliffstore.run.store import Store") & learning


def test_public_names_are_there() -> None:
    import cliffstore

    for name in cliffstore.__all__:
        assert getattr(cliffstore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cliffstore.nothing  # type: ignore[attr-defined]


def test_extract_stays_a_function_when_its_folder_is_imported() -> None:
    """Python binds an imported folder as an attribute of its package, over what `__getattr__` gives."""
    import cliffstore
    import cliffstore.extract.unit
    from cliffstore.errors import UserError

    for _ in range(2):
        with pytest.raises(UserError, match="model none"):
            cliffstore.extract("nowhere.jsonl", model="none", store="none")


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    banned_modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    # loky runs functions in processes of our own, and reads no file
    found = {name for _, name in _imports(path, types=True) if not name.startswith("joblib.externals.loky")}
    imported = {name.split(".")[0] for name in found}
    assert not imported & banned_modules
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        where = f"{path.relative_to(ROOT)}:{node.lineno}: {called}"
        assert called not in {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load"}, where
        for keyword in node.keywords:
            allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            assert keyword.arg not in {"trust_remote_code", "allow_pickle"} or allowed, where
