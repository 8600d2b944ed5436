import resource
import sys

import numpy as np
import psutil
import pytest

from weft.core.memory import freed_memory_kept, give_back


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_small_pieces_that_were_freed_are_returned():
    pieces = [np.ones(8_000) for _ in range(2_000)]  # 64 kB each: from the heap
    kept = pieces[-1]
    pieces.clear()
    before = psutil.Process().memory_info().rss
    give_back()
    assert psutil.Process().memory_info().rss < before - 50 * 2**20
    assert kept.sum() == 8_000


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_what_was_freed_is_taken_again_without_asking_the_system():
    def pages_of_a_large_piece() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(2**26)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with freed_memory_kept():
        pages_of_a_large_piece()
        assert pages_of_a_large_piece() < 100
