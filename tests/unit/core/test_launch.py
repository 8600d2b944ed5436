"""Launchers say in the environment which process this is."""

import pytest

from weft.core.errors import InputError
from weft.core.launch import Place, place

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, Place(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"} | MEETING, Place(3, 4, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"} | MEETING, Place(1, 2, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"} | MEETING, Place(1, 2, 0)),
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            }
            | MEETING,
            Place(1, 2, 0),
        ),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Place(0, 1, 0)),
        ({"RANK": "0"}, Place(0, 1, 0)),  # of how many is not said: no launcher does that
    ],
)
def test_the_place_is_what_the_launcher_says(said, expected):
    assert place(said) == expected


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"} | MEETING, "RANK=2, WORLD_SIZE=2, LOCAL_RANK=0"),
        ({"RANK": "-1", "WORLD_SIZE": "2"} | MEETING, "RANK=-1"),
        ({"RANK": "one", "WORLD_SIZE": "2"} | MEETING, "RANK=one"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, r"one of 2 processes \(PMI_SIZE\), and MASTER_ADDR"),
        ({"ACCELERATE_USE_CPU": "True"} | MEETING, "has started one: it needs MPI"),
    ],
)
def test_what_makes_no_sense_is_refused(said, problem):
    with pytest.raises(InputError, match=problem):
        place(said)
