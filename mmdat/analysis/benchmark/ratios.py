# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Times and memory over those of a baseline, pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ...utils.errors import UserError
from .cases import Measurement


@dataclass(frozen=True)
class Baseline:
    """Whom to compare with.

    Attributes:
        name: Label of a subject; or ``@backend``, the same subject with this
            backend, not compiled; ``@auto`` is the backend mmdat chooses.
        of: Name of the subjects to be compared with it, None for all.
    """

    name: str
    of: str | None = None

    def label_for(self, measurement: Measurement) -> str | None:
        """Label of the subject to compare with, None if there is none."""
        subject = measurement.case.subject
        if self.of not in (None, subject.name):
            return None
        if self.name.startswith('@'):
            return subject.name + self.name.removesuffix('@auto')
        return self.name


@dataclass(frozen=True)
class Ratio:
    """A subject over its baseline; below 1 is better.

    Attributes:
        time: Median of the ratios of the rounds.
        memory: Ratio of the peaks, None where one was not measured.
    """

    time: float
    memory: float | None


def parse_baseline(text: str) -> Baseline:
    """Reads ``NAME``, ``@BACKEND``, ``OF=NAME``.

    Raises:
        UserError: None of these.
    """
    of, equals, name = text.rpartition('=')
    if not name or name == '@' or (equals and not of):
        raise UserError(
            f'A baseline is given as NAME, @BACKEND or OF=NAME; got {text!r}.'
        )
    return Baseline(name, of or None)


def paired(times: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds of time over the baseline's time."""
    return median(a / b for a, b in zip(times, base, strict=True))


def compare(
    measurement: Measurement,
    others: Sequence[Measurement],
    baseline: Baseline,
) -> Ratio | None:
    """Holds a measurement against the baseline of its setting.

    Args:
        measurement: Of whom.
        others: All measurements of the same setting.
        baseline: Which of them to compare with.

    Returns:
        The ratio, None if either was not measured.
    """
    label = baseline.label_for(measurement)
    base = [m for m in others if m.case.subject.label == label]
    if not base or not base[0].seconds or not measurement.seconds:
        return None
    memory = None
    if base[0].memory and measurement.memory is not None:
        memory = measurement.memory / base[0].memory
    return Ratio(paired(measurement.seconds, base[0].seconds), memory)
