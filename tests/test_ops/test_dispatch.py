# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest

from mmdat.ops.dispatch import Backend, choose, explain, explainable, wanted


def run_fast(x):
    return 'fast'


def run_plain(x):
    return 'plain'


def needs_even(x):
    return None if x % 2 == 0 else f'x must be even; got {x}.'


BACKENDS = (
    Backend('fast', run_fast, needs_even),
    Backend('plain', run_plain),
)


def reasons(backends, *args):
    def op(x):
        return choose('op', backends, None, x)(x)

    explainable(op, backends, lambda x: (x,))
    return explain(op, *args)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv('MMDAT_ATTN_BACKEND', raising=False)


def test_takes_the_first_that_can_run():
    assert choose('op', BACKENDS, None, 2) is run_fast
    assert choose('op', BACKENDS, None, 3) is run_plain


def test_a_backend_asked_for_runs_or_says_why_not():
    assert choose('op', BACKENDS, 'plain', 2) is run_plain
    with pytest.raises(ValueError, match='run op here. fast: x must .*got 3'):
        choose('op', BACKENDS, 'fast', 3)


def test_the_environment_decides_where_the_caller_does_not(monkeypatch):
    monkeypatch.setenv('MMDAT_ATTN_BACKEND', 'plain')
    assert choose('op', BACKENDS, None, 2) is run_plain
    assert choose('op', BACKENDS, 'fast', 2) is run_fast
    # A name that only other ops know leaves this one its choice.
    monkeypatch.setenv('MMDAT_ATTN_BACKEND', 'triton')
    assert choose('op', BACKENDS, None, 2) is run_fast


def test_a_name_that_no_op_knows_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="backend must be one of.*'quick'"):
        choose('op', BACKENDS, 'quick', 2)
    monkeypatch.setenv('MMDAT_ATTN_BACKEND', 'tritn')
    said = "MMDAT_ATTN_BACKEND must be one of triton, .*; got 'tritn'"
    with pytest.raises(ValueError, match=said):
        choose('op', BACKENDS, None, 2)
    with pytest.raises(ValueError, match=said):
        wanted()
    monkeypatch.setenv('MMDAT_ATTN_BACKEND', '')
    assert choose('op', BACKENDS, None, 2) is run_fast


def test_a_slower_backend_yields_unless_asked_for():
    def large_only(x):
        return None if x > 10 else f'it pays from 10 on; got {x}.'

    backends = (
        Backend('fast', run_fast, needs_even, large_only),
        Backend('plain', run_plain),
    )
    assert choose('op', backends, None, 12) is run_fast
    assert choose('op', backends, None, 2) is run_plain
    assert choose('op', backends, 'fast', 2) is run_fast
    assert reasons(backends, 2) == {
        'fast': 'it pays from 10 on; got 2.',
        'plain': None,
    }


def test_explains():
    assert reasons(BACKENDS, 3) == {
        'fast': 'x must be even; got 3.',
        'plain': None,
    }
