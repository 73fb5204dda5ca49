"""The formats of a training set: an example and its answer as the columns that trainers read.

| format | columns | read by |
|---|---|---|
| messages | messages: the conversation with its answer | TRL, Axolotl, LLaMA-Factory |
| prompt-completion | prompt, completion: the same in two parts, so that the loss is of the answer alone | TRL |
| alpaca | instruction, input, output, system, history | Axolotl, LLaMA-Factory |
| raw | every column of the example, target, answer | anything |

The answer is thinking between the model's markers, and then the target. All functions are from values to values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from cliffstore.errors import SelectionError
from cliffstore.schema import EXAMPLES, TRAINING_SETS

Row = Mapping[str, object]
Turn = dict[str, str]

CONVERSATION = ("id", "system", "prompt", "thinking", "messages")
"""Columns of `examples` that make a row, whatever the format; `messages` where the corpus had conversations."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_CJK}]|[^\\s{_CJK}]+")
_KEEP = re.compile(r"keep(?::(\d+(?:\.\d+)?)%)?")


@dataclass(frozen=True, slots=True)
class Thinking:
    """What becomes of an example's thinking.

    Attributes
    ----------
    share : of its words that are kept, from the first on
    text : what stands in place of what is kept
    """

    kind: Literal["keep", "drop", "replace"]
    share: float = 1.0
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> Thinking:
        """Return what `keep`, `keep:40%`, `drop` or `replace:TEXT` means. Raises `SelectionError` where it is none."""
        if text.startswith("replace:"):
            return cls("replace", text=text.removeprefix("replace:"))
        if text == "drop":
            return cls("drop")
        matched = _KEEP.fullmatch(text)
        if matched and float(matched[1] or 100) <= 100:
            return cls("keep", float(matched[1] or 100) / 100)
        raise SelectionError(f"thinking {text!r} is not known: say keep, keep:40%, drop or replace:TEXT")

    def of(self, thinking: str | None) -> str | None:
        """Return what is to be learnt of an example's thinking; None where there shall be none, not even markers."""
        if not thinking or self.kind == "drop":
            return None
        return self.text if self.kind == "replace" else first_words(thinking, self.share)

    def __str__(self) -> str:
        if self.kind == "keep":
            return "kept" if self.share == 1 else f"the first {100 * self.share:g} % of its words kept"
        return "left out" if self.kind == "drop" else f"replaced by {self.text!r}"


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows are written.

    Attributes
    ----------
    renamed : column of `examples` -> its name in `raw`, where that differs
    """

    format: str
    thinking: Thinking
    think_open: str
    think_close: str
    renamed: Mapping[str, str] = field(default_factory=dict)

    def answer(self, row: Row, target: str) -> str:
        """Return the assistant's whole turn: thinking, in its markers, and the target."""
        given = row["thinking"]
        thinking = self.thinking.of(None if given is None else str(given))
        return target if thinking is None else f"{self.think_open}{thinking}{self.think_close}{target}"

    def columns(self, row: Row, target: str) -> dict[str, object]:
        """Return the columns of the format, those of lineage apart.

        Parameters
        ----------
        row : columns of `examples`: all for `raw`, else `CONVERSATION`

        Raises
        ------
        SelectionError
            The conversation does not fit the format.
        """
        answer = self.answer(row, target)
        turn = {"role": "assistant", "content": answer}
        if self.format == "messages":
            return {"messages": [*conversation(row), turn]}
        if self.format == "prompt-completion":
            return {"prompt": conversation(row), "completion": [turn]}
        if self.format == "alpaca":
            return _alpaca(row, answer)
        kept = {self.renamed.get(name, name): value for name, value in row.items()}
        return {**kept, "target": target, "answer": answer}


def first_words(text: str, share: float) -> str:
    """Return the beginning of a text with `share` of its words, rounded down. A CJK character is a word."""
    words = list(_WORD.finditer(text))
    kept = int(len(words) * share + 1e-9)
    if kept == len(words):
        return text
    return text[: words[kept - 1].end()] if kept else ""


def conversation(row: Row) -> list[Turn]:
    """Return the turns before the answer: those of the corpus, or system and prompt."""
    given = row.get("messages")
    if isinstance(given, list) and given:
        turns = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in given]
        return turns[:-1] if turns[-1]["role"] == "assistant" else turns
    system = [{"role": "system", "content": str(row["system"])}] if row["system"] else []
    return [*system, {"role": "user", "content": str(row["prompt"])}]


def columns_of_examples(columns: pa.Schema) -> tuple[pa.Schema, dict[str, str]]:
    """Return the schema of `raw` over the columns of `examples`, and the new names of those that would collide.

    A column of the corpus that has the name of a column of lineage, such as `rank`, is kept as `corpus_rank`.
    """
    base = TRAINING_SETS["raw"]
    taken = {*base.names, *columns.names}
    fields, renamed = list(base), {}
    for column in columns:
        if column.name in EXAMPLES.names:
            continue
        name = column.name
        if name in base.names:
            name = f"corpus_{name}"
            while name in taken:
                name += "_"
            taken.add(name)
            renamed[column.name] = name
        fields.append(pa.field(name, column.type))
    return pa.schema(fields), renamed


def _alpaca(row: Row, answer: str) -> dict[str, object]:
    turns = conversation(row)
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    *before, last = [turn for turn in turns if turn["role"] != "system"] or [{"role": "", "content": ""}]
    asked, answered = before[::2], before[1::2]
    if [turn["role"] for turn in (*before, last)] != ["user", "assistant"] * len(asked) + ["user"]:
        raise SelectionError(
            f"example {row['id']!r}: its turns are not of user and assistant by turns, as alpaca has them: choose "
            "--format messages"
        )
    history = [[one["content"], other["content"]] for one, other in zip(asked, answered, strict=True)]
    return {"instruction": last["content"], "input": "", "output": answer, "system": system, "history": history}
