"""Say what to install when a framework, or an operator of mmcv, cannot be imported."""

import importlib
from importlib.util import find_spec
from types import ModuleType


class MissingOperatorsError(RuntimeError):
    """mmcv is installed without its compiled operators, and ``what`` needs them."""

    def __init__(self, what: str, cause: ImportError) -> None:
        super().__init__(
            f"{what} needs mmcv's compiled operators, which are not installed ({cause}). To "
            'build them you need torch, ninja and a C++ compiler: MMCV_WITH_OPS=1 pip install '
            '--no-build-isolation --no-cache-dir --force-reinstall --no-deps mmcv==2.1.0 '
            '(onedl stack: onedl-mmcv==2.3.6; its MMSegmentation runs without the operators).'
        )


def import_for(framework: str, module: str, advice: str) -> ModuleType:
    """Import ``module``, which needs ``framework``.

    Raises:
        MissingOperatorsError: mmcv lacks the operators that the framework needs.
        ImportError: the framework cannot be imported; the message ends with ``advice``.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, AssertionError) as error:  # the frameworks assert the version of mmcv
        if isinstance(error, ImportError) and '_ext' in str(error):
            raise MissingOperatorsError(framework, error) from error
        raise ImportError(f'{framework} cannot be imported ({error}). {advice}') from error


def check_mmseg_imports() -> None:
    """Check that mmseg, if installed, does not fail to import for lack of mmcv's operators.

    Upstream MMSegmentation needs them, the onedl distribution does not.

    Raises:
        MissingOperatorsError: it fails for that reason.
        ImportError: it fails for another one.
    """
    if find_spec('mmcv._ext') is None and find_spec('mmseg') is not None:
        import_for('MMSegmentation', 'mmseg.models', 'Repair or uninstall it.')
