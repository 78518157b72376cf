"""The root of the tree of errors, and how one is shown."""

from __future__ import annotations

from collections.abc import Iterator


class TerselyError(Exception):
    """Base of all: what happened (`message`), and what to do about it (`way_out`).

    Args:
        message: What happened and where, one or two sentences, safe to show.
        way_out: The next thing the user should do, in the imperative.
    """

    kind: str = "tersely"
    exit_code: int = 1

    def __init__(self, message: str, way_out: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.message} {self.way_out}".strip()

    def render(self) -> str:
        """Plain text for a terminal: kind, message, way out and page, without a traceback."""
        lines = [f"error[{self.kind}]: {self.message}"]
        if self.way_out:
            lines.append(f"  what to do: {self.way_out}")
        lines.append(f"  more: docs/errors/{self.kind}.md (exit code {self.exit_code})")
        return "\n".join(lines)


def concrete_errors() -> Iterator[type[TerselyError]]:
    """All classes of the tree that have a code of their own, in the order of their codes."""

    def walk(cls: type[TerselyError]) -> Iterator[type[TerselyError]]:
        for sub in cls.__subclasses__():
            if "kind" in sub.__dict__:
                yield sub
            yield from walk(sub)

    return iter(sorted(walk(TerselyError), key=lambda cls: cls.exit_code))
