"""The fixture of the tests of ``ops`` that compiles for other processors."""

from tests.ops.conftest import shorter_registers

__all__ = ['shorter_registers']
