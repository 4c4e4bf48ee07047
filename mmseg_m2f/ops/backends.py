"""Back ends of an operator: named functions that can say why they cannot run.

``choose('auto', ...)`` takes the first automatic back end without an objection and logs its name
once; a back end asked for by name that cannot run raises ``ValueError`` with its objection. Nothing
is read from the environment and nothing falls back in silence.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

logger = logging.getLogger('mmseg_m2f')
Function = TypeVar('Function', bound=Callable[..., Any])
_LOGGED: set[tuple[str, str]] = set()


class Backend(NamedTuple):
    """``why_not(*args)`` returns None if ``function(*args)`` can run, else the reason.

    The answer may depend on the type, device, dtype and shape of the arguments, on whether their
    gradient is asked for, and on PyTorch's own modes (autocast, capturing); on nothing else. Unless
    ``automatic``, it runs only where it is named: so does what has not been measured against the
    others.
    """

    name: str
    function: Callable[..., Any]
    why_not: Callable[..., str | None]
    automatic: bool = True


class BackendTable:
    """The back ends of one operator in order of preference; the reference stands last."""

    def __init__(self, operator: str, reference: Backend) -> None:
        self.operator = operator
        self._backends = [reference]

    @property
    def names(self) -> list[str]:
        """Names in order of preference."""
        return [backend.name for backend in self._backends]

    def register(self, backend: Backend) -> None:
        """Put ``backend`` before all others; one of the same name is replaced."""
        self._backends = [backend] + [b for b in self._backends if b.name != backend.name]

    def check_name(self, name: str) -> None:
        """Raises ValueError unless ``name`` is ``'auto'`` or a registered back end."""
        if name not in ('auto', *self.names):
            known = ', '.join(repr(known) for known in ['auto', *self.names])
            raise ValueError(f'{self.operator}: unknown back end {name!r}; known: {known}')

    def choose(self, name: str, *args: Any) -> Backend:
        """The back end ``name``, or for ``'auto'`` the first that can run on ``args``.

        Raises:
            ValueError: the name is unknown, or the named back end cannot run on ``args``.
        """
        if name == 'auto':
            return self._first(*args)
        self.check_name(name)
        backend = next(backend for backend in self._backends if backend.name == name)
        objection = backend.why_not(*args)
        if objection is not None:
            raise ValueError(f'{self.operator}: back end {name!r} cannot run: {objection}')
        return backend

    def _first(self, *args: Any) -> Backend:
        for backend in self._backends:
            if backend.automatic and backend.why_not(*args) is None:
                _log_once(self.operator, backend.name)
                return backend
        raise AssertionError(f'{self.operator}: the reference back end must always run')


def constant_when_compiled(function: Function) -> Function:
    """``torch.compile`` runs ``function`` by itself and takes the result for a constant.

    What ``torch.compiler.assume_constant_result`` does, which imports the compiler to do it: two
    seconds and 200 MiB for everybody who never compiles.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def _log_once(operator: str, name: str) -> None:
    if (operator, name) not in _LOGGED:
        _LOGGED.add((operator, name))
        logger.info('%s runs on back end %r', operator, name)
