"""Whether every module of a stock model is one that ours equals."""

from collections.abc import Collection, Mapping

from torch import nn

from mmseg_m2f.adapters.acceleration.twin import CannotAccelerateError

# By package and class: a subclass of the user's may compute anything.
TORCH = {
    f'torch.{name}'
    for name in (
        'Conv2d',
        'Dropout',
        'Embedding',
        'GroupNorm',
        'Identity',
        'LayerNorm',
        'Linear',
        'ModuleList',
        'MultiheadAttention',
        'NonDynamicallyQuantizableLinear',
        'ReLU',
        'Sequential',
    )
}
_DROPOUTS = ('dropout', 'activation_dropout', 'layerdrop', 'p')


def kind_of(part: object) -> str:
    """``package.Class`` of an object."""
    return f'{type(part).__module__.partition(".")[0]}.{type(part).__name__}'


def check_modules(stock: Mapping[str, nn.Module], known: Collection[str]) -> None:
    """Every module below is of a known kind, with settings that ours has.

    Raises:
        CannotAccelerateError: one is not, by its path.
    """
    for root, top in stock.items():
        for path, module in top.named_modules():
            where = '.'.join(part for part in (root, path) if part)
            kind = kind_of(module)
            if kind not in known and kind not in TORCH:
                raise CannotAccelerateError(f'{where} is {kind}, which our parts do not have')
            if objection := _objection(module):
                raise CannotAccelerateError(f'{where} ({kind}) has {objection}')


def the_same(what: str, values: Collection[int]) -> int:
    """The one value of a setting that ours has once.

    Raises:
        CannotAccelerateError: there are several.
    """
    if len(set(values)) != 1:
        raise CannotAccelerateError(f'{what} is {sorted(set(values))}, our parts have one for all')
    return next(iter(values))


def _objection(module: nn.Module) -> str | None:
    for name in _DROPOUTS:
        value = getattr(module, name, 0)
        if isinstance(value, int | float) and value > 0:
            return f'{name} = {value}, our parts have no dropout'
    if isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.eps != 1e-5:
        return f'eps = {module.eps}, ours is 1e-05'
    if isinstance(module, nn.Conv2d):
        return _objection_to_convolution(module)
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse):
        return 'max_norm or sparse, which ours has not'
    if isinstance(module, nn.MultiheadAttention) and module.add_zero_attn:
        return 'add_zero_attn, which ours has not'
    return None


def _objection_to_convolution(module: nn.Conv2d) -> str | None:
    plain = {
        'stride': (1, 1),
        'dilation': (1, 1),
        'groups': 1,
        'padding': tuple(side // 2 for side in module.kernel_size),
        'padding_mode': 'zeros',
    }
    for name, value in plain.items():
        if getattr(module, name) != value:
            return f'{name} = {getattr(module, name)}, ours is {value}'
    return None
