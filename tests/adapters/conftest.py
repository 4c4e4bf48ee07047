"""Fixtures for tests of the adapters."""

import logging
from collections.abc import Iterator

import pytest


def logged(level: int) -> Iterator[list[str]]:
    """Collect the messages of ``level`` or above, except MMEngine's about its default scope."""
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
    yield from logged(logging.INFO)


@pytest.fixture
def warned() -> Iterator[list[str]]:
    yield from logged(logging.WARNING)
