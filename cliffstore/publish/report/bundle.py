"""The page's script: the ES modules in `scripts/`, joined to one module that imports nothing.

A page that is opened from a disk may not import a file beside it, so modules are put one behind the other, each after
those that it imports, without their `import` and `export`. They share one scope: no two may declare the same name at
their top level, which is checked. Modules are written so that this is all it takes: `import { a, b } from "./c.js";` in
one line, `export` before a declaration.
"""

from __future__ import annotations

import re
from importlib.resources import files

_IMPORT = re.compile(r'^import \{ [\w, ]+ \} from "\./([a-z_]+\.js)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let)\b)", re.MULTILINE)
_DECLARED = re.compile(r"^(?:async )?(?:function\*?|class|const|let) (\w+)", re.MULTILINE)
_LEFT = re.compile(r"^(?:import|export)\b.*$", re.MULTILINE)


def bundle(entry: str = "main.js") -> str:
    """Return the module `entry` with all that it imports, as one script."""
    folder = files("cliffstore.publish.report") / "scripts"
    parts: dict[str, str] = {}

    def add(name: str) -> None:
        source = (folder / name).read_text(encoding="utf-8")
        parts[name] = ""  # those that import each other come in the order in which they are met
        for other in _IMPORT.findall(source):
            if other not in parts:
                add(other)
        parts[name] = parts.pop(name) or _EXPORT.sub("", _IMPORT.sub("", source)).strip()

    add(entry)
    text = "\n\n".join(f"// {name}\n{part}" for name, part in parts.items())
    check_joined(text)
    return f"{text}\n"


def check_joined(text: str) -> None:
    """Raise ValueError where modules cannot stand in one scope as they are."""
    names = _DECLARED.findall(text)
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"scripts of the report declare the same names: {', '.join(sorted(twice))}")
    if left := _LEFT.search(text):
        raise ValueError(f"a script of the report has an import or export that is not joined: {left[0]}")
    if "</" in text:
        raise ValueError("a script of the report has '</', which could end its element: write it otherwise")
