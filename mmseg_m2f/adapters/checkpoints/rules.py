"""The conditions of a load, and how a caller changes them for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoadRules:
    """Conditions that a load must fulfill.

    Args:
        min_matched: smallest share of matching tensors in each module of the model, in [0, 1].
        other_classes: whether a checkpoint with another number of classes is resized, so that a
            training can start from it, or refused, because a test of it would mean nothing.
    """

    min_matched: float = 0.95
    other_classes: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.min_matched <= 1:
            raise ValueError(f'min_matched must be between 0 and 1, got {self.min_matched}')


# The hooks are called by torch, deep inside a runner, so nobody can pass the rules to them.
CURRENT_RULES: ContextVar[LoadRules] = ContextVar('load_rules', default=LoadRules())  # noqa: B039


@contextmanager
def load_rules(min_matched: float = 0.95, other_classes: bool = True) -> Iterator[None]:
    """Apply other `LoadRules` to every load within the ``with`` statement."""
    token = CURRENT_RULES.set(LoadRules(min_matched=min_matched, other_classes=other_classes))
    try:
        yield
    finally:
        CURRENT_RULES.reset(token)
