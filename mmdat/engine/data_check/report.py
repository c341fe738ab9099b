# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Collects the results of the checks: errors and warnings."""

from collections.abc import Iterable

from ...utils.errors import UserError

# More sentences than this would scroll the first one off the screen.
MOST = 8


class Report:
    """Collects errors and warnings, without duplicates, in order."""

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
        """Raises UserError with all errors, one per line."""
        if not self.errors:
            return
        shown = self.errors[:MOST]
        if len(self.errors) > MOST:
            shown.insert(
                0, f'{len(self.errors)} errors were found; the first {MOST}:'
            )
        raise UserError('\n'.join(shown))


def listed(names: Iterable, most: int = 5) -> str:
    """Joins names with commas, at most the first `most`."""
    names = list(names)
    text = ', '.join(str(name) for name in names[:most])
    return text + f', ... ({len(names)} in all)' * (len(names) > most)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: ``1 picture``, ``2 pictures``."""
    word = noun if number == 1 else (plural or f'{noun}s')
    return f'{number} {word}'
