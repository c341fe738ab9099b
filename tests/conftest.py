# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Puts the oracle and the helpers on the path of every test."""

import logging
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / 'helpers')]

# PyTorch's exporters log each step at this level; pytest would keep all of it.
logging.disable(logging.DEBUG)

# How many cases each test with the mark `fuzz` tries: the same ones in every
# run of the suite, new ones each time in the longer run of `make fuzz`.
_COMMON = dict(deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile(
    'suite', max_examples=40, derandomize=True, database=None, **_COMMON
)
settings.register_profile(
    'fuzz', max_examples=450, print_blob=True, database=None, **_COMMON
)
settings.load_profile('suite')


def pytest_configure(config):
    config.addinivalue_line(
        'markers', 'slow: takes more than about ten seconds on two cores'
    )
    config.addinivalue_line('markers', 'fuzz: tries many cases of its own')
    config.addinivalue_line(
        'markers', 'long: takes a minute and runs with `make fuzz` only'
    )


def pytest_collection_modifyitems(items):
    if os.environ.get('MMDAT_TEST_LONG') == '1':
        return
    skip = pytest.mark.skip(reason='runs with make fuzz: MMDAT_TEST_LONG=1')
    for item in items:
        if item.get_closest_marker('long'):
            item.add_marker(skip)
