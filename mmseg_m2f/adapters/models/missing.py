"""Say what to install when a framework, or an operator of mmcv, cannot be imported."""

import importlib
from importlib.util import find_spec


class MissingOperatorsError(RuntimeError):
    """mmcv is installed without its compiled operators, and ``what`` needs them."""

    def __init__(self, what: str, cause: ImportError) -> None:
        super().__init__(
            f"{what} needs mmcv's compiled operators, which are not installed ({cause}). To "
            'build them you need torch, ninja and a C++ compiler: MMCV_WITH_OPS=1 pip install '
            '--no-build-isolation --no-cache-dir --force-reinstall --no-deps mmcv==2.1.0 '
            '(onedl stack: onedl-mmcv==2.3.6; its MMSegmentation runs without the operators).'
        )


def import_failure(framework: str, error: Exception, advice: str) -> Exception:
    """Return the exception to raise when importing ``framework`` failed with ``error``.

    It is a `MissingOperatorsError` if mmcv's operators are the cause, else an ``ImportError``
    with ``advice``.
    """
    if isinstance(error, ImportError) and '_ext' in str(error):
        return MissingOperatorsError(framework, error)
    return ImportError(advice)


def check_mmseg_imports() -> None:
    """Check that mmseg, if installed, does not fail to import for lack of mmcv's operators.

    Upstream MMSegmentation needs them, the onedl distribution does not.

    Raises:
        MissingOperatorsError: it does fail for that reason.
    """
    if find_spec('mmcv._ext') is not None or find_spec('mmseg') is None:
        return
    try:
        importlib.import_module('mmseg.models')
    except ImportError as error:
        if '_ext' in str(error):
            raise MissingOperatorsError('MMSegmentation', error) from error
        raise
