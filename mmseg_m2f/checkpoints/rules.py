"""Renaming rules that read in both directions, applied to whole state dicts.

In a template ``{i}`` and ``{j}`` stand for a number and ``*`` for the rest of a name as long
as no number is in it, such as ``weight`` or ``out_proj.bias``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]


def _unchanged(value: Tensor) -> Tensor:
    return value


class Rule(NamedTuple):
    """One of our names and its counterparts; of several, ours is the concatenation in order."""

    ours: str
    theirs: tuple[str, ...]
    to_ours: Callable[[Tensor], Tensor] = _unchanged
    to_theirs: Callable[[Tensor], Tensor] = _unchanged


class KeyMap:
    """Translates whole state dicts; tensors are shared, not copied, where their content stays.

    Args:
        rules: no key may match two of them.
        ours_only, theirs_only: templates of keys without counterpart, left out when converting.
    """

    def __init__(
        self, rules: Sequence[Rule], ours_only: Sequence[str] = (), theirs_only: Sequence[str] = ()
    ) -> None:
        self._to_ours = [
            (_pattern(template), rule, part)
            for rule in rules
            for part, template in enumerate(rule.theirs)
        ]
        self._to_theirs = [(_pattern(rule.ours), rule) for rule in rules]
        self._ours_only = [_pattern(template) for template in ours_only]
        self._theirs_only = [_pattern(template) for template in theirs_only]

    def to_ours(self, state_dict: StateDict) -> dict[str, Tensor]:
        """``state_dict`` under our names.

        Raises:
            ValueError: a key is unknown, or one of several tensors that form one of ours is absent.
        """
        found: dict[str, tuple[Rule, re.Match[str], dict[int, Tensor]]] = {}
        unknown = []
        for key, value in state_dict.items():
            for pattern, rule, part in self._to_ours:
                if hit := pattern.fullmatch(key):
                    name = _render(rule.ours, hit)
                    found.setdefault(name, (rule, hit, {}))[2][part] = value
                    break
            else:
                unknown.append(key)
        _refuse_unknown(unknown, self._theirs_only)
        return {name: _joined(name, *entry) for name, entry in found.items()}

    def to_theirs(self, state_dict: StateDict) -> dict[str, Tensor]:
        """Inverse of ``to_ours``.

        Raises:
            ValueError: a key is unknown.
        """
        converted: dict[str, Tensor] = {}
        unknown = []
        for key, value in state_dict.items():
            for pattern, rule in self._to_theirs:
                if hit := pattern.fullmatch(key):
                    names = [_render(template, hit) for template in rule.theirs]
                    converted.update(zip(names, _parts(rule, value), strict=True))
                    break
            else:
                unknown.append(key)
        _refuse_unknown(unknown, self._ours_only)
        return converted


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    escaped = re.sub(r'\\{(\w)\\}', r'(?P<\1>\\d+)', escaped)
    return re.compile(escaped.replace(r'\*', '(?P<leaf>[a-z_.]+)'))


def _render(template: str, hit: re.Match[str]) -> str:
    return template.replace('*', '{leaf}').format(**hit.groupdict())


def _joined(name: str, rule: Rule, hit: re.Match[str], parts: dict[int, Tensor]) -> Tensor:
    missing = [_render(rule.theirs[i], hit) for i in range(len(rule.theirs)) if i not in parts]
    if missing:
        raise ValueError(f'{name} needs {", ".join(missing)}, which the checkpoint does not hold')
    ordered = [parts[i] for i in range(len(rule.theirs))]
    return rule.to_ours(ordered[0] if len(ordered) == 1 else torch.cat(ordered))


def _parts(rule: Rule, value: Tensor) -> Sequence[Tensor]:
    value = rule.to_theirs(value)
    # A scalar (a batch counter) cannot be chunked, and one part needs no view.
    return [value] if len(rule.theirs) == 1 else value.chunk(len(rule.theirs))


def _refuse_unknown(keys: Sequence[str], dropped: Sequence[re.Pattern[str]]) -> None:
    unknown = [key for key in keys if not any(pattern.fullmatch(key) for pattern in dropped)]
    if unknown:
        raise ValueError(
            f'{len(unknown)} keys do not belong to this layout, the first are {unknown[:5]}'
        )
