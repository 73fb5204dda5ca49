"""A reporter for tests of what the user is told."""

from __future__ import annotations


class Told:
    """A reporter that keeps notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str, event: str = "notice") -> None:
        self.notices.append(text)

    def ask(self, question: str) -> bool | None:
        return None

    def stage(self, text: str) -> None: ...
    def begin(self, what: str, total: int, done: int = 0) -> None: ...
    def advance(self, piece: object = None) -> None: ...
    def end(self) -> None: ...
