"""Back ends of an operator: named functions that can say why they cannot run.

``choose('auto', ...)`` takes the first automatic back end without an objection and logs its name
once. If only the reference is left, it warns once and says why. A back end asked for by name that
cannot run raises ``ValueError`` with its objection.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

logger = logging.getLogger('mmseg_m2f')
Function = TypeVar('Function', bound=Callable[..., Any])
_LOGGED: set[str] = set()


class Backend(NamedTuple):
    """One implementation of an operator, and the test whether it can run.

    ``why_not(*args)`` returns None if ``function(*args)`` can run, else the reason. The answer
    depends only on the type, device, dtype and shape of the arguments and on whether their gradient
    is asked for. A back end that is not ``automatic`` runs only where it is named: it has not been
    measured against the others.
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
        """Return the names in order of preference."""
        return [backend.name for backend in self._backends]

    def register(self, backend: Backend) -> None:
        """Put ``backend`` before all others; replace one of the same name."""
        self._backends = [backend] + [b for b in self._backends if b.name != backend.name]

    def check_name(self, name: str) -> None:
        """Raise ValueError unless ``name`` is ``'auto'`` or a registered back end."""
        if name not in ('auto', *self.names):
            known = ', '.join(repr(known) for known in ['auto', *self.names])
            raise ValueError(f'{self.operator}: unknown back end {name!r}; known: {known}')

    def choose(self, name: str, *args: Any) -> Backend:
        """Return the back end ``name``, or for ``'auto'`` the first that can run on ``args``.

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
        *faster, reference = self._backends
        objections = []
        for backend in faster:
            if not backend.automatic:
                continue
            objection = backend.why_not(*args)
            if objection is None:
                log_once(f'{self.operator} runs on back end {backend.name!r}')
                return backend
            objections.append(f'{backend.name!r}: {objection}')
        log_once(
            f'{self.operator} runs on its slow reference, as no other back end can run: '
            + '; '.join(objections),
            logging.WARNING,
        )
        return reference


def constant_when_compiled(function: Function) -> Function:
    """Mark ``function`` so that ``torch.compile`` calls it once and keeps the result as a constant.

    ``torch.compiler.assume_constant_result`` does the same, but imports the compiler: two seconds
    and 200 MiB for everybody who never compiles.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def log_once(message: str, level: int = logging.INFO) -> None:
    """Log ``message`` unless this process has logged it before."""
    if message not in _LOGGED:
        _LOGGED.add(message)
        logger.log(level, message)
