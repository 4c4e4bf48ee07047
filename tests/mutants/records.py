"""All mutants, room by room."""

from tests.mutants import core
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (*core.MUTANTS,)
