"""Rename the tensors of a state dict by rules that work in both directions.

In a template ``{i}`` and ``{j}`` stand for a number, and ``*`` for the rest of a name without
numbers, such as ``weight`` or ``out_proj.bias``.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]


def _unchanged(value: Tensor) -> Tensor:
    return value


class Rule(NamedTuple):
    """One of our names and its counterpart; if there are several, ours is their concatenation."""

    ours: str
    theirs: tuple[str, ...]
    to_ours: Callable[[Tensor], Tensor] = _unchanged
    to_theirs: Callable[[Tensor], Tensor] = _unchanged


def same(pairs: Iterable[tuple[str, str]], ours: str, theirs: str) -> list[Rule]:
    """Make one-to-one rules from pairs of names below the prefixes ``ours`` and ``theirs``."""
    return [Rule(ours + left, (theirs + right,)) for left, right in pairs]


class _Found(NamedTuple):
    """The parts found for one of our tensors: key and value by the index of the part."""

    rule: Rule
    hit: re.Match[str]
    parts: dict[int, tuple[str, Tensor]]


class KeyMap:
    """Translate whole state dicts; tensors whose content stays are shared, not copied.

    Args:
        rules: all are used for reading. If several have the same name of ours, the first is used
            for writing. No key of theirs may match two rules.
        ours_only: templates of our keys without counterpart, which are left out.
        theirs_only: the same of their keys.
        spell: changes another spelling of one of their keys to the one in the rules.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        ours_only: Sequence[str] = (),
        theirs_only: Sequence[str] = (),
        spell: Callable[[str], str] | None = None,
    ) -> None:
        self._spell = spell or str
        self._to_ours = [
            (_pattern(template), rule, part)
            for rule in rules
            for part, template in enumerate(rule.theirs)
        ]
        self._to_theirs = [(_pattern(rule.ours), rule) for rule in rules]
        self._ours_only = [_pattern(template) for template in ours_only]
        self._theirs_only = [_pattern(template) for template in theirs_only]

    def to_ours(self, state_dict: StateDict) -> dict[str, Tensor]:
        """Translate ``state_dict`` to our names.

        Raises:
            ValueError: A key is unknown, two keys have the same name of ours, a part of one of our
                tensors is missing, or a shape does not fit its name.
        """
        found: dict[str, _Found] = {}
        unknown = []
        for key, value in state_dict.items():
            spelled = self._spell(key)
            for pattern, rule, part in self._to_ours:
                if hit := pattern.fullmatch(spelled):
                    name = _render(rule.ours, hit)
                    parts = found.setdefault(name, _Found(rule, hit, {})).parts
                    if part in parts:
                        raise ValueError(f'{parts[part][0]} and {key} are both our {name}')
                    parts[part] = key, value
                    break
            else:
                if not _matches(spelled, self._theirs_only):
                    unknown.append(key)
        _refuse(unknown)
        return {name: _joined(name, entry) for name, entry in found.items()}

    def to_theirs(self, state_dict: StateDict) -> dict[str, Tensor]:
        """Invert ``to_ours``.

        Raises:
            ValueError: A key is unknown, or a shape does not fit its name.
        """
        converted: dict[str, Tensor] = {}
        unknown = []
        for key, value in state_dict.items():
            for pattern, rule in self._to_theirs:
                if hit := pattern.fullmatch(key):
                    names = [_render(template, hit) for template in rule.theirs]
                    converted.update(zip(names, _parts(key, rule, value), strict=True))
                    break
            else:
                if not _matches(key, self._ours_only):
                    unknown.append(key)
        _refuse(unknown)
        return converted


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    escaped = re.sub(r'\\{(\w)\\}', r'(?P<\1>\\d+)', escaped)
    return re.compile(escaped.replace(r'\*', '(?P<leaf>[a-z_.]+)'))


def _render(template: str, hit: re.Match[str]) -> str:
    return template.replace('*', '{leaf}').format(**hit.groupdict())


def _joined(name: str, found: _Found) -> Tensor:
    rule, hit, parts = found
    missing = [_render(rule.theirs[i], hit) for i in range(len(rule.theirs)) if i not in parts]
    if missing:
        raise ValueError(f'{name} needs {", ".join(missing)}, which the checkpoint does not hold')
    ordered = [parts[i] for i in range(len(rule.theirs))]
    try:
        values = [value for _, value in ordered]
        return rule.to_ours(values[0] if len(values) == 1 else torch.cat(values))
    except RuntimeError as error:
        shapes = ', '.join(f'{key} {tuple(value.shape)}' for key, value in ordered)
        raise ValueError(f'{name} cannot be made from {shapes}') from error


def _parts(key: str, rule: Rule, value: Tensor) -> Sequence[Tensor]:
    count = len(rule.theirs)
    try:
        value = rule.to_theirs(value)
        # A scalar, such as a batch counter, cannot be split.
        return [value] if count == 1 else value.unflatten(0, (count, -1)).unbind()
    except RuntimeError as error:
        raise ValueError(
            f'{", ".join(rule.theirs)} cannot be made from {key} {tuple(value.shape)}'
        ) from error


def _matches(key: str, patterns: Sequence[re.Pattern[str]]) -> bool:
    return any(pattern.fullmatch(key) for pattern in patterns)


def _refuse(unknown: Sequence[str]) -> None:
    if unknown:
        raise ValueError(
            f'{len(unknown)} keys do not belong to this layout, the first are {unknown[:5]}'
        )
