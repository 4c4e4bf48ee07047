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


class NameRule(NamedTuple):
    """One of our names and its counterpart; if there are several, ours is their concatenation.

    A tensor whose other side is empty is left out.
    """

    ours: str
    theirs: tuple[str, ...]
    to_ours: Callable[[Tensor], Tensor] = _unchanged
    to_theirs: Callable[[Tensor], Tensor] = _unchanged


def same(pairs: Iterable[tuple[str, str]], ours: str, theirs: str) -> list[NameRule]:
    """Make one-to-one rules from pairs of names below the prefixes ``ours`` and ``theirs``."""
    return [NameRule(ours + left, (theirs + right,)) for left, right in pairs]


def left_out(*theirs: str) -> list[NameRule]:
    """Make rules for names of theirs that have no counterpart."""
    return [NameRule('', (name,)) for name in theirs]


class _Found(NamedTuple):
    """The parts found for one of our tensors: key and value by the index of the part."""

    rule: NameRule
    hit: re.Match[str]
    parts: dict[int, tuple[str, Tensor]]


class KeyMap:
    """Translate whole state dicts; tensors whose content stays are shared, not copied.

    Args:
        rules: all are used for reading. If several have the same name of ours, the first is used
            for writing. No key of theirs may match two rules.
        spell: changes another spelling of one of their keys to the one in the rules.
    """

    def __init__(self, rules: Sequence[NameRule], spell: Callable[[str], str] = str) -> None:
        self._spell = spell
        self._to_ours = [
            (_pattern(template), rule, part)
            for rule in rules
            for part, template in enumerate(rule.theirs)
        ]
        self._to_theirs = [(_pattern(rule.ours), rule) for rule in rules if rule.ours]

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
                    if name and part in parts:
                        raise ValueError(f'{parts[part][0]} and {key} are both our {name}')
                    parts[part] = key, value
                    break
            else:
                unknown.append(key)
        _refuse(unknown)
        found.pop('', None)  # what is left out
        return {name: _joined(name, *entry) for name, entry in found.items()}

    def to_theirs(self, state_dict: StateDict) -> dict[str, Tensor]:
        """Invert ``to_ours``; raise the same errors."""
        converted: dict[str, Tensor] = {}
        unknown = []
        for key, value in state_dict.items():
            for pattern, rule in self._to_theirs:
                if hit := pattern.fullmatch(key):
                    names = [_render(template, hit) for template in rule.theirs]
                    converted.update(zip(names, _split(key, value, rule), strict=True))
                    break
            else:
                unknown.append(key)
        _refuse(unknown)
        return converted


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    escaped = re.sub(r'\\{(\w)\\}', r'(?P<\1>\\d+)', escaped)
    return re.compile(escaped.replace(r'\*', '(?P<leaf>[a-z_.]+)'))


def _render(template: str, hit: re.Match[str]) -> str:
    return template.replace('*', '{leaf}').format(**hit.groupdict())


def _joined(
    name: str, rule: NameRule, hit: re.Match[str], parts: Mapping[int, tuple[str, Tensor]]
) -> Tensor:
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


def _split(key: str, value: Tensor, rule: NameRule) -> Sequence[Tensor]:
    count = len(rule.theirs)
    if not count:
        return ()
    try:
        value = rule.to_theirs(value)
        # A scalar, such as a batch counter, cannot be split.
        return (value,) if count == 1 else value.unflatten(0, (count, -1)).unbind()
    except RuntimeError as error:
        shape = tuple(value.shape)
        raise ValueError(f'{", ".join(rule.theirs)} cannot be made from {key} {shape}') from error


def _refuse(unknown: Sequence[str]) -> None:
    if unknown:
        raise ValueError(
            f'{len(unknown)} keys do not belong to this layout, the first are {unknown[:5]}'
        )
