# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Ratios on fixed numbers."""

import pytest
from cases import (
    Baseline,
    Case,
    Conditions,
    Measurement,
    Setting,
    Subject,
    parse_baseline,
)
from report import compare, paired

from mmdat.utils.errors import UserError

SETTING = Setting('inference', 1, 8, 8)


def measured(label, seconds, memory=None):
    name, _, rest = label.partition('@')
    backend, _, compiled = rest.partition('+')
    subject = Subject(name, backend or None, compiled=bool(compiled))
    case = Case(subject, SETTING, Conditions())
    return Measurement(case, seconds=tuple(seconds), memory=memory)


def test_rounds_are_paired():
    """A machine that gets slower and slower does not change the ratio."""
    base = [1.0, 2.0, 4.0]
    assert paired([2.0, 4.0, 8.0], base) == 2.0
    # 3, 1.5, 1.25; medians 3 and 2 would give 1.5 too, so shuffle the rounds
    assert paired([3.0, 3.0, 5.0], base) == 1.5
    assert paired([5.0, 3.0, 3.0], base) == 1.5
    assert paired([3.0, 5.0, 3.0], base) == 2.5


def test_rounds_must_agree():
    with pytest.raises(ValueError):
        paired([1.0, 2.0], [1.0])


def test_against_a_name():
    ours, peer = measured('a', [3, 6], 50), measured('b', [2, 4], 200)
    ratio = compare(ours, [ours, peer], Baseline('b'))
    assert (ratio.time, ratio.memory) == (1.5, 0.25)
    assert compare(ours, [ours, peer], Baseline('c')) is None
    assert compare(ours, [ours, peer], Baseline('b', of='b')) is None
    assert compare(ours, [ours, peer], Baseline('b', of='a')) == ratio


def test_against_a_backend():
    everyone = [
        measured('a', [1]),
        measured('a@reference', [4]),
        measured('b', [1]),
        measured('b@reference', [8]),
    ]
    ratios = [compare(m, everyone, Baseline('@reference')) for m in everyone]
    assert [r.time for r in ratios] == [0.25, 1, 0.125, 1]
    ratios = [compare(m, everyone, Baseline('@auto')) for m in everyone]
    assert [r.time for r in ratios] == [1, 4, 1, 8]


def test_without_numbers_there_is_no_ratio():
    ours, failed = measured('a', [3]), measured('b', [])
    assert compare(ours, [ours, failed], Baseline('b')) is None
    assert compare(failed, [ours, failed], Baseline('a')) is None
    unweighed = measured('b', [1])
    ratio = compare(ours, [ours, unweighed], Baseline('b'))
    assert (ratio.time, ratio.memory) == (3, None)


def test_reading_baselines():
    assert parse_baseline('swin_t') == Baseline('swin_t')
    assert parse_baseline('@reference') == Baseline('@reference')
    assert parse_baseline('dat_t=theirs') == Baseline('theirs', 'dat_t')
    for text in ('', '@', 'dat_t=', '=theirs'):
        with pytest.raises(UserError, match='NAME, @BACKEND or OF=NAME'):
            parse_baseline(text)
