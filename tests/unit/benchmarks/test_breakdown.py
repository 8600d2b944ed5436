"""A profile is of the timed steps, by kind of work."""

import time

import pytest
import torch

from benchmarks import breakdown
from benchmarks.device import Clock
from benchmarks.harness import Contender, Trace

VOCABULARY = 1009


def contender(traces):
    """A product before each step; a sum, and one more product with the head where it is said."""

    def build():
        big, head = torch.ones(700, 700), torch.ones(400, VOCABULARY)

        def run(batches):
            clock = Clock()
            for batch in batches:
                big @ big
                with clock.step():
                    time.sleep(0.01)
                    big.add(1)
                    if batch == "head":
                        head.T @ head
            traces.append(Trace(tuple(clock.seconds), (0.0,)))
            return traces[-1]

        return run

    return Contender("one", "One", build)


def test_what_happens_between_steps_and_in_warm_up_steps_is_left_out():
    found = breakdown.seconds_by_kind(contender([]), ["head"], ["body"], VOCABULARY)
    assert found["elementwise"] > 0
    assert found["matrix products"] == found[breakdown.LOSS] == 0
    assert found[breakdown.OUTSIDE] > 0.01


def test_what_touches_the_vocabulary_is_head_and_loss():
    found = breakdown.seconds_by_kind(contender([]), ["body"], ["head"], VOCABULARY)
    assert found[breakdown.LOSS] > 0
    assert found["matrix products"] == 0


def test_seconds_of_all_kinds_are_those_of_the_steps():
    traces = []
    found = breakdown.seconds_by_kind(contender(traces), ["body"], ["head", "body"], VOCABULARY)
    assert sum(found.values()) == pytest.approx(sum(traces[0].seconds[1:]))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("aten::_fused_adamw_", "optimiser and clipping"),
        ("aten::linalg_vector_norm", "optimiser and clipping"),
        ("aten::native_layer_norm", "layer norm"),
        ("aten::add_", "elementwise"),
    ],
)
def test_an_operation_has_its_kind(name, kind):
    assert breakdown.kind_of(name, [[4, 8]], VOCABULARY) == kind
