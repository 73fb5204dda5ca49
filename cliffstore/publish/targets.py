"""What a model shall learn to answer: a column of the corpus, one text, a template over an example's columns, or what
another model answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cliffstore.errors import SelectionError
from cliffstore.publish.formats import Row

if TYPE_CHECKING:
    from jinja2 import Template

_LARGEST_TEMPLATE = 1 << 20


class Target(Protocol):
    """Where answers come from."""

    @property
    def column(self) -> str | None:
        """Return the column of `examples` that has the answer; None where the answer is made otherwise."""
        ...

    @property
    def needs(self) -> tuple[str, ...] | None:
        """Return the columns of `examples` that the answer is made of; None for all."""
        ...

    def of(self, rows: Sequence[Row], texts: Sequence[str | None]) -> list[str | None]:
        """Return the answer to learn for each row; None where there is none. Equal rows have equal answers.

        Parameters
        ----------
        rows : columns of `examples`
        texts : what `column` holds
        """
        ...

    def __str__(self) -> str:
        """Return what it is, for the card."""
        ...


@dataclass(frozen=True, slots=True)
class ColumnTarget:
    """A column of the corpus."""

    column: str | None
    needs: tuple[str, ...] | None = ()

    def of(self, rows: Sequence[Row], texts: Sequence[str | None]) -> list[str | None]:
        return list(texts)

    def __str__(self) -> str:
        return f"column {self.column}"


@dataclass(frozen=True, slots=True)
class TextTarget:
    """One text for all."""

    text: str
    column: str | None = None
    needs: tuple[str, ...] | None = ()

    def of(self, rows: Sequence[Row], texts: Sequence[str | None]) -> list[str | None]:
        return [self.text] * len(rows)

    def __str__(self) -> str:
        return f"the text {self.text!r}"


@dataclass(frozen=True, slots=True)
class TemplateTarget:
    """A Jinja template over an example's columns."""

    template: Template
    name: str
    digest: str
    column: str | None = None
    needs: tuple[str, ...] | None = None

    @classmethod
    def read(cls, path: str) -> TemplateTarget:
        """Read a template. It runs in Jinja's sandbox: it reads columns, and reaches nothing else. Null is no text.

        Raises
        ------
        SelectionError
            The file cannot be read, or is no template.
        """
        try:
            with Path(path).open("rb") as file:
                content = file.read(_LARGEST_TEMPLATE + 1)
            text = content.decode()
        except OSError as error:
            raise SelectionError(f"template {path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise SelectionError(f"template {path} is not text in UTF-8") from None
        if len(content) > _LARGEST_TEMPLATE:
            raise SelectionError(f"template {path} is larger than {_LARGEST_TEMPLATE:,} bytes")
        return cls.of_text(text, Path(path).name, f"template {path}")

    @classmethod
    def of_text(cls, text: str, name: str, where: str) -> TemplateTarget:
        """Return the template that a text is. Raises `SelectionError` where it is none; `where` says which."""
        from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, autoescape=False, finalize=lambda value: "" if value is None else value
        )
        try:
            template = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise SelectionError(f"{where}, line {error.lineno}: {error.message}") from None
        except TemplateError as error:
            raise SelectionError(f"{where}: {error.message}") from None
        return cls(template, name, hashlib.sha256(text.encode()).hexdigest())

    def of(self, rows: Sequence[Row], texts: Sequence[str | None]) -> list[str | None]:
        return [self.render(row) for row in rows]

    def render(self, row: Row) -> str:
        """Return the template's text for an example.

        Raises
        ------
        SelectionError
            It names a column that is not there, or fails otherwise.
        """
        from jinja2 import UndefinedError

        try:
            return self.template.render(dict(row))
        except UndefinedError as error:
            columns = ", ".join(row)
            raise SelectionError(f"template {self.name}: {error.message}; columns are: {columns}") from None
        except Exception as error:  # noqa: BLE001 - whatever a template's expressions raise
            kind = type(error).__name__
            raise SelectionError(f"template {self.name}, example {row.get('id')!r}: {kind}: {error}") from None

    def __str__(self) -> str:
        return f"the template {self.name} (sha256 {self.digest})"
