# Copyright (c) mmdat contributors. Apache-2.0 licence.
import logging

import pytest
from mmengine.logging import MMLogger


@pytest.fixture(autouse=True)
def quiet():
    """Leaves out a line or three for every parameter of every model."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)
