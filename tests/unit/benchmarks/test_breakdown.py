"""A profile is of the timed steps, by kind of work."""

import time
from types import SimpleNamespace

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


class LogProbOfParts(torch.autograd.Function):
    """Log-probabilities by products that are narrower than the vocabulary."""

    @staticmethod
    def forward(ctx, hidden, head):
        ctx.save_for_backward(head)
        return torch.cat([hidden @ part.T for part in head.split(500)], 1).sum()

    @staticmethod
    def backward(ctx, grad):
        (head,) = ctx.saved_tensors
        return sum(torch.ones(300, len(part)) @ part for part in head.split(500)) * grad, None


def test_products_of_a_part_of_the_vocabulary_are_head_and_loss_forward_and_back():
    def build():
        hidden, head = torch.ones(300, 400, requires_grad=True), torch.ones(VOCABULARY, 400)

        def run(batches):
            clock = Clock()
            with clock.step():
                LogProbOfParts.apply(hidden, head).backward()
            return Trace(tuple(clock.seconds), (0.0,))

        return run

    found = breakdown.seconds_by_kind(Contender("one", "One", build), [], ["all"], VOCABULARY)
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
    event = SimpleNamespace(name=name, input_shapes=[[4, 8]], cpu_parent=None)
    assert breakdown.kind_of(event, VOCABULARY) == kind
