# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What a check found: errors that end a run, warnings that do not."""

from collections.abc import Iterable

from ...utils.errors import UserError

# More sentences than this would push the first off the screen.
MOST = 8


class Report:
    """Sentences, each once, in the order in which they were found."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def error(self, sentence: str) -> None:
        """Adds a problem that prevents the run."""
        if sentence not in self.errors:
            self.errors.append(sentence)

    def warn(self, sentence: str) -> None:
        """Adds a problem that does not prevent the run."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def raise_errors(self) -> None:
        """Raises UserError with all errors, one a line."""
        if not self.errors:
            return
        shown = self.errors[:MOST]
        if len(self.errors) > MOST:
            shown.insert(0, f'{len(self.errors)} errors, the first {MOST}:')
        raise UserError('\n'.join(shown))


def listed(names: Iterable, most: int = 5) -> str:
    """Names in a row, the first few of many."""
    names = list(names)
    text = ', '.join(str(name) for name in names[:most])
    return text + f', ... ({len(names)} in all)' * (len(names) > most)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 picture``, ``2 pictures``."""
    word = noun if number == 1 else (plural or f'{noun}s')
    return f'{number} {word}'
