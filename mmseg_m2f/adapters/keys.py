"""Check the keys of a config."""

from collections.abc import Iterable


def check_keys(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keys that nothing reads.

    Args:
        where: the part of the config, as the error names it.
        given: the keys of the user.
        known: the keys that are allowed, in the order in which the error lists them.

    Raises:
        ValueError: a key of ``given`` is not in ``known``.
    """
    known = list(known)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f'{where} does not know {unknown}; known keys: {known}')
