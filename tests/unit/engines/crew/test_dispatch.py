"""Whatever workers do wrong, a generation is every member once, or an error that says why."""

import numpy as np
import pytest

from weft.core.errors import EngineError, InputError
from weft.core.keys import Key
from weft.engines.crew.dispatch import Dispatch, Lost
from weft.engines.crew.worker import Answer, Fault, Order
from weft.methods.estimate import Graded

LIKE_US = {"base": "abc", "noise": "def"}
RIGHT, LOST, SILENT, WRONG_CENTRE, OTHER_MEMBERS, FAULT, FINAL = [
    "right",
    "lost",
    "silent",
    "wrong-centre",
    "other-members",
    "fault",
    "final",
]
SECOND = 1.0
PATIENCE = 100.0


def order(start, generation=0):
    return Order(generation, f"digest {generation}", Key(1), 9, True, Key(2), start, start + 2)


def orders(generation=0):
    return [order(start, generation) for start in (0, 2, 4, 6, 8)]


def right(order):
    return Answer(order, order.digest, Graded(np.arange(order.start, order.stop)[:, None] * 1.0))


class Scripted:
    """Workers that do what `script[worker]` says, order by order, and then what is right.

    A number is how many seconds the right answer takes. `starts[worker]` is the same for what a
    worker says when it is started. Time passes in `wait` only.
    """

    def __init__(self, script=None, starts=None):
        self.script = {worker: list(acts) for worker, acts in (script or {}).items()}
        self.starts = {worker: list(acts) for worker, acts in (starts or {}).items()}
        self.time = 0.0
        self.graded, self.started, self.most = [], [], 0
        self._due = {}
        self._now = {}

    def now(self):
        return self.time

    def start(self, worker):
        self.started.append(worker)
        for ticket in [t for t in self._due if t[0] == worker]:
            del self._due[ticket]  # nobody hears of it any more
        acts = self.starts.get(worker)
        return self._will(worker, acts.pop(0) if acts else LIKE_US, None)

    def grade(self, worker, order, shared):
        assert shared == "shared"
        assert not [t for t in self._due if t[0] == worker], "one order each at a time"
        self.graded.append((worker, order))
        acts = self.script.get(worker)
        return self._will(worker, acts.pop(0) if acts else RIGHT, order)

    def _will(self, worker, act, order):
        ticket = (worker, len(self.started), len(self.graded))
        seconds = act if isinstance(act, float) else SECOND
        self._due[ticket] = (np.inf if act == SILENT else self.time + seconds, act, order)
        self.most = max(self.most, len(self._due))
        return ticket

    def wait(self, tickets, seconds):
        first = min(tickets, key=lambda ticket: self._due[ticket][0])
        if self._due[first][0] > self.time + seconds:
            self.time += seconds
            return []
        self.time = max(self.time, self._due[first][0])
        return [first]

    def take(self, ticket):
        _, act, order = self._due.pop(ticket)
        if act == LOST:
            raise Lost("killed")
        if isinstance(act, dict | Fault):
            return act
        return {
            WRONG_CENTRE: lambda: Answer(order, "another digest", right(order).graded),
            OTHER_MEMBERS: lambda: right(orders()[0 if order.start else 1]),
            FAULT: lambda: Fault("out of memory"),
            FINAL: lambda: Fault("prompt 3 is too long", "shorten it", final=True),
        }.get(act, lambda: right(order))()

    def share(self, value):
        return value

    def capacity(self):
        return "the cluster has 1 CPU"

    def close(self):
        pass


def opened(executor, workers=2, retries=3):
    told = []
    dispatch = Dispatch(
        executor, workers, LIKE_US, PATIENCE, 50.0, retries, told.append, executor.now
    )
    dispatch.open()
    return dispatch, told


def members(answers):
    return [int(n) for answer in answers for n in answer.graded.reward_NE[:, 0]]


def test_every_member_comes_back_once_and_in_order_whoever_was_first():
    executor = Scripted({0: [9.0, 1.0], 1: [1.0, 5.0]})
    dispatch, told = opened(executor)
    assert members(dispatch(orders(), "shared")) == list(range(10))
    assert told == []
    assert executor.most == 2


def test_a_worker_that_dies_is_started_again_and_its_members_are_done_by_whoever_is_free():
    executor = Scripted({0: [LOST]})
    dispatch, told = opened(executor)
    assert members(dispatch(orders(), "shared")) == list(range(10))
    assert executor.started == [0, 1, 0]
    assert [worker for worker, its in executor.graded if its == order(0)] == [0, 1]
    assert told == ["worker 0 is started again: it is lost (killed)"]


def test_of_a_slow_worker_the_members_are_asked_of_another_too_and_the_first_answer_counts():
    executor = Scripted({0: [150.0]})
    dispatch, told = opened(executor)
    assert members(dispatch(orders(), "shared")) == list(range(10))
    assert [worker for worker, its in executor.graded if its == order(0)] == [0, 1]
    assert executor.time < 150
    assert told == ["worker 0 has been at members 0 to 1 for 100 s: another is asked, too"]


def test_a_late_answer_is_nobody_s_in_the_next_generation():
    executor = Scripted({0: [150.0]})
    dispatch, _ = opened(executor)
    dispatch(orders(), "shared")
    executor.script[1] = [60.0]  # so that the late one comes while this one goes on
    answers = dispatch(orders(generation=1), "shared")
    assert [answer.order for answer in answers] == orders(generation=1)
    assert executor.started == [0, 1]
    assert executor.time > 150


def test_a_slow_worker_alone_is_waited_for():
    executor = Scripted({0: [150.0]})
    dispatch, _ = opened(executor, workers=1)
    assert members(dispatch(orders(), "shared")) == list(range(10))
    assert executor.started == [0]
    assert executor.time > 150


def test_a_worker_that_hangs_is_started_again():
    executor = Scripted({0: [SILENT]})
    dispatch, told = opened(executor, workers=1)
    assert members(dispatch(orders(), "shared")) == list(range(10))
    assert executor.started == [0, 0]
    assert told[-1] == "worker 0 is started again: it has said nothing for 200 s"


@pytest.mark.parametrize("act", [WRONG_CENTRE, OTHER_MEMBERS])
def test_an_answer_to_something_else_is_refused(act):
    executor = Scripted({1: [act]})
    dispatch, told = opened(executor)
    answers = dispatch(orders(), "shared")
    assert [(a.order, a.digest) for a in answers] == [(its, its.digest) for its in orders()]
    assert told == [
        "worker 1 is started again: asked for members 2 to 3, it answered with something else"
    ]


def test_a_worker_that_always_fails_is_given_up_and_the_others_do_its_part():
    executor = Scripted({0: [FAULT] * 9})
    dispatch, told = opened(executor, retries=2)
    for generation in range(4):
        assert members(dispatch(orders(generation), "shared")) == list(range(10))
    assert executor.started == [0, 1, 0, 0]
    assert told[-1] == "worker 0 is given up: out of memory"


def test_failures_count_since_the_last_answer():
    executor = Scripted({0: [LOST, RIGHT, LOST, RIGHT, LOST, RIGHT]})
    dispatch, told = opened(executor, workers=1, retries=1)
    assert members(dispatch(orders(), "shared")) == list(range(10))
    assert len(told) == 3
    assert all("started again" in each for each in told)


def test_members_that_nobody_can_grade_stop_the_run():
    executor = Scripted({worker: [FAULT] * 9 for worker in range(9)})
    dispatch, _ = opened(executor, workers=5, retries=2)
    with pytest.raises(EngineError, match=r"could not be graded in 3 attempts.*out of memory") as e:
        dispatch(orders(), "shared")
    assert "weft train --resume" in e.value.hint


def test_without_any_worker_left_the_run_stops():
    executor = Scripted({0: [LOST]}, {0: [LIKE_US, LOST, LOST]})
    dispatch, told = opened(executor, workers=1, retries=2)
    with pytest.raises(EngineError, match="no worker is left, and members 0 to 1 have no reward"):
        dispatch(orders(), "shared")
    assert told[-1] == "worker 0 is given up: it is lost (killed)"


def test_what_nobody_could_do_is_an_error_at_once():
    executor = Scripted({0: [FINAL]})
    dispatch, _ = opened(executor)
    with pytest.raises(InputError, match="worker 0: prompt 3 is too long") as e:
        dispatch(orders(), "shared")
    assert e.value.hint == "shorten it"
    assert executor.started == [0, 1]


def test_a_worker_unlike_this_process_is_refused():
    executor = Scripted(starts={1: [{**LIKE_US, "base": "another"}]})
    with pytest.raises(EngineError, match="worker 1 is not like this process: its base is another"):
        opened(executor)


def test_workers_that_the_cluster_has_no_place_for_are_waited_for_and_then_told():
    executor = Scripted(starts={1: [SILENT]})
    with pytest.raises(EngineError, match="1 of 2 workers could be started in 50 s") as e:
        opened(executor, retries=0)
    assert e.value.hint == "the cluster has 1 CPU"
    assert executor.time == 50


def test_a_worker_that_cannot_start_says_why():
    executor = Scripted(starts={1: [Fault("there is no server"), Fault("there is no server")]})
    with pytest.raises(EngineError, match=r"1 of 2 workers.*there is no server"):
        opened(executor, retries=1)
