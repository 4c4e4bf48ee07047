"""Config text within a checkpoint, which MMEngine would run as Python."""

import ast
import logging
from typing import Any

from mmengine.logging import print_log

_LITERALS = (ast.Constant, ast.Dict, ast.List, ast.Tuple, ast.Set, ast.UnaryOp, ast.USub)


def leave_out_programs(checkpoint: Any, name: str) -> None:
    """Remove config text that does more than assign plain values; a warning says so.

    ``Runner.resume`` and inferencers without a config run such text. ``checkpoint`` is changed in
    place; ``name`` names the file in the warning.
    """
    if not isinstance(checkpoint, dict):
        return
    meta, hub = checkpoint.get('meta'), checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for holder, key in ((meta, 'config'), (meta, 'cfg'), (info, 'cfg')):
        if not isinstance(holder, dict):
            continue
        text = holder.get(key)
        if isinstance(text, str) and not is_plain_config(text):
            del holder[key]
            print_log(
                f'{name}: the config text under {key!r} is more than plain values and was left '
                'out, because MMEngine may run it',
                logger='current',
                level=logging.WARNING,
            )


def is_plain_config(text: str) -> bool:
    """Return True if config text only assigns plain values, so that running it does no more."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(_is_plain_assignment(statement) for statement in body)


def _is_plain_assignment(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Assign) or len(statement.targets) > 1:
        return False
    target = statement.targets[0]
    # A base is a file that would be run as well; a saved config has none left.
    if not isinstance(target, ast.Name) or target.id == '_base_':
        return False
    return all(_is_plain_node(node) for node in ast.walk(statement.value))


def _is_plain_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and not node.args
    if isinstance(node, ast.Name):
        return node.id == 'dict'
    return isinstance(node, (*_LITERALS, ast.keyword, ast.expr_context))
