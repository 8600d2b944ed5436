"""How this process was started: alone, or as one of several by torchrun, accelerate or MPI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from weft.core.errors import InputError

NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun and accelerate
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
)
"""Where launchers say which process this is, of how many, and which of its machine."""

MEETING = ("MASTER_ADDR", "MASTER_PORT")
"""Where the processes find each other."""

COMMAND = "torchrun --nproc-per-node 2 -m weft train"


@dataclass(frozen=True)
class Place:
    """Number `rank` of `size` processes, and number `local` of those on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0


def place(environment: Mapping[str, str] | None = None) -> Place:
    """What the launcher says in the environment; without one, a process is alone.

    Raises `InputError` for a launch of several processes in which they cannot meet.
    """
    said = os.environ if environment is None else environment
    for rank, size, local in NAMES:
        if rank in said and size in said:
            found = _place(said, (rank, size, local))
            missing = [name for name in MEETING if name not in said]
            if found.size > 1 and missing:
                raise InputError(
                    f"this is one of {found.size} processes ({size}), and {missing[0]} is not set",
                    hint=f"start them with a launcher that sets it, such as `{COMMAND}`",
                )
            return found
    if "ACCELERATE_USE_CPU" in said and MEETING[0] in said:
        raise InputError(
            "`accelerate launch --cpu` was asked for several processes and has started one: it "
            "needs MPI (`--mpirun_hostfile`) for more",
            hint=f"use `accelerate launch --multi_gpu`, which needs no GPU, or `{COMMAND}`",
        )
    return Place()


def _place(said: Mapping[str, str], names: tuple[str, str, str]) -> Place:
    """The three numbers; a launcher may leave out the last."""
    given = {name: said.get(name, "0") for name in names}
    rank, size, local = (int(text) if text.isdecimal() else -1 for text in given.values())
    if not (0 <= rank < size and local >= 0):
        told = ", ".join(f"{name}={text}" for name, text in given.items())
        raise InputError(
            f"the environment does not say which process this is: {told}",
            hint="these are set by a launcher; unset them to train in one process",
        )
    return Place(rank, size, local)
