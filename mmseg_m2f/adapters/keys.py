"""Check the keys of a config."""

from collections.abc import Iterable


def check_keys(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``ValueError`` if a key is not known; ``where`` names the part of the config."""
    known = list(known)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f'{where} does not know {unknown}; known keys: {known}')
