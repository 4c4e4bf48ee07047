"""Fixtures for tests of the adapters."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def logged(level: int) -> Iterator[list[str]]:
    """The messages logged at ``level`` or above, but for MMEngine's on its default scope."""
    from mmengine.logging import MMLogger

    messages: list[str] = []
    handler = logging.Handler(level)
    handler.addFilter(lambda record: 'default scope' not in record.getMessage())
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Collect the messages that are logged."""
    with logged(logging.INFO) as messages:
        yield messages


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """What was logged as a warning or an error."""
    with logged(logging.WARNING) as messages:
        yield messages
