"""All mutants, room by room."""

from tests.mutants import adapters_data, adapters_models, checkpoints, core, cpu, evaluation, ops
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *core.MUTANTS,
    *ops.MUTANTS,
    *cpu.MUTANTS,
    *evaluation.MUTANTS,
    *checkpoints.MUTANTS,
    *adapters_models.MUTANTS,
    *adapters_data.MUTANTS,
)
