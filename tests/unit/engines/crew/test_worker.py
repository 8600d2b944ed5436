"""What goes to a worker and what comes back, without anything between them but copies."""

import pickle
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.servers import Contract
from weft.core.batch import Batch, Example, Goal
from weft.core.keys import Key
from weft.data.rewards.conciseness import Conciseness
from weft.data.rewards.user import UserReward
from weft.engines.config import LocalConfig, RayConfig, VllmConfig, own_engine
from weft.engines.crew.crew import SharedOut
from weft.engines.crew.dispatch import Dispatch
from weft.engines.crew.worker import Fault, Moving, Order, Posting, Standing, Worker, identity
from weft.engines.local import LocalEngine
from weft.engines.population import Alone, Generation, Work
from weft.engines.registry import open_engine
from weft.engines.reward import Reward
from weft.methods.population import Population
from weft.model.bank import Bank
from weft.model.base import load_base
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.noise import normal
from weft.model.objectives import TOKENS
from weft.model.sites import choose_sites
from weft.runs.timing import Stopwatch

GRADE = """
def reward(row, completion):
    return row["worth"] * len(set(completion)) - len(completion) / 7
"""
SIZE = 6


def copied(value):
    return pickle.loads(pickle.dumps(value))


class Copying:
    """Workers in this process that see copies only, as if they were elsewhere."""

    def __init__(self, postings):
        self.postings = postings
        self.workers = {}
        self.sent = []
        self._came_to = {}

    def start(self, worker):
        self.workers[worker] = Worker()
        posting = copied(self.postings[worker])
        return self._ticket(self.workers[worker].open(posting))

    def grade(self, worker, order, shared):
        self.sent.append(pickle.dumps(order))
        return self._ticket(self.workers[worker].grade(copied(order), *map(pickle.loads, shared)))

    def share(self, value):
        return pickle.dumps(value)

    def wait(self, tickets, seconds):
        return tickets[-1:]  # the last that was begun is the first that is done

    def take(self, ticket):
        return self._came_to.pop(ticket)

    def capacity(self):
        return ""

    def close(self):
        for worker in self.workers.values():
            worker.close()

    def _ticket(self, value):
        ticket = max(self._came_to, default=0) + 1
        self._came_to[ticket] = copied(value)
        return ticket


@pytest.fixture(scope="module")
def base(small_base):
    return load_base(small_base)


@pytest.fixture(scope="module")
def layout(base):
    return choose_sites(base.sites, AdapterConfig(rank=2, scale=2.0))


@pytest.fixture
def reward(tmp_path):
    file = tmp_path / "grade.py"
    file.write_text(GRADE)
    grader = UserReward(file)
    yield Reward(grader, Decoding(max_tokens=16, temperature=0.9))
    grader.close()


def batch():
    generator = np.random.default_rng(0)
    prompts = [generator.integers(2, 320, length) for length in (5, 3, 8)]
    return Batch(
        tuple(
            Example(str(n), p, np.concatenate([[-100], p[1:]]), goal=Goal(p, {"worth": n + 1}))
            for n, p in enumerate(prompts)
        )
    )


def generation(layout, stacked=False):
    stack = None
    if stacked:
        stack = Bank.from_flat(("below",), layout, normal(layout.size, Key.of(7))[None] * 0.05)
    population = Population(
        normal(layout.size, Key.of(1)) * 0.1,
        torch.full((layout.size,), 0.4),
        Key.of(2),
        SIZE,
        antithetic=True,
    )
    return Generation(population, stack, batch(), Key.of(3))


def crew_of(base, layout, objective, members=3, workers=2):
    work = Work(base.ref, "float32", "cpu", layout, objective, members)
    executor = Copying([Posting(LocalConfig(), work, torch.get_num_threads())] * workers)
    expected = identity(LocalEngine(base), objective)
    dispatch = Dispatch(executor, workers, expected, 1e9, 1e9, 0, lambda _: None)
    dispatch.open()
    return SharedOut(executor, dispatch, layout, members)


@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "on commits"])
def test_a_crew_s_rewards_are_those_of_one_engine_to_the_last_bit(base, layout, reward, stacked):
    crew = crew_of(base, layout, reward)
    own = Alone(LocalEngine(base), layout, reward, 3)
    asked = generation(layout, stacked)
    ours, theirs = (each.rewards(asked, Stopwatch()) for each in (own, crew))
    crew.close()
    assert ours.reward_NE.shape == (SIZE + 1, 3)
    assert len(np.unique(ours.reward_NE)) > SIZE
    np.testing.assert_array_equal(theirs.reward_NE, ours.reward_NE)
    assert list(theirs.parts) == list(ours.parts)
    for name, part_NE in ours.parts.items():
        np.testing.assert_array_equal(theirs.parts[name], part_NE)


def test_losses_are_shared_out_as_rewards_are(base, layout):
    crew = crew_of(base, layout, TOKENS)
    ours = Alone(LocalEngine(base), layout, TOKENS, 3).rewards(generation(layout), Stopwatch())
    theirs = crew.rewards(generation(layout), Stopwatch())
    np.testing.assert_array_equal(theirs.reward_NE, ours.reward_NE)


def test_of_texts_only_those_of_the_centre_come_back(base, layout, reward):
    crew = crew_of(base, layout, reward)
    own = Alone(LocalEngine(base), layout, reward, 3).rewards(generation(layout), Stopwatch())
    graded = crew.rewards(generation(layout), Stopwatch())
    crew.close()
    assert graded.texts == (*[()] * SIZE, own.texts[-1])
    assert graded.ids == (*[()] * SIZE, own.ids[-1])


def test_theta_goes_out_once_and_then_only_which_members(base, layout, reward):
    crew = crew_of(base, layout, reward, members=1)
    shared = []
    share = crew.executor.share
    crew.executor.share = lambda value: shared.append(value) or share(value)
    for _ in range(2):
        crew.rewards(generation(layout), Stopwatch())
    crew.close()
    # the noise is the same as before, and is not sent again
    assert [type(value) for value in shared] == [Moving, Standing, Moving]
    assert len(crew.executor.sent) == 2 * (SIZE + 1)
    assert max(map(len, crew.executor.sent)) < 600


def test_another_centre_than_the_order_says_is_refused(base, layout):
    posting = Posting(LocalConfig(), Work(base.ref, "float32", "cpu", layout, TOKENS), 1)
    worker = Worker()
    worker.open(posting)
    standing = Standing.of(torch.full((layout.size,), 0.1), None)
    moving = Moving(np.zeros(layout.size, np.float32), batch())
    order = Order(
        0, moving.digest(standing.digest), Key.of(0), SIZE, antithetic=True, sampling=Key.of(0),
        start=0, stop=2,
    )  # fmt: skip
    assert worker.grade(order, moving, standing).digest == order.digest
    changed = replace(moving, centre_P=moving.centre_P + np.float32(1e-30))
    found = worker.grade(order, changed, standing)
    assert isinstance(found, Fault) and "the centre that arrived is" in found.problem
    other_noise = replace(standing, noise_P=standing.noise_P * 2)
    assert isinstance(worker.grade(order, moving, other_noise), Fault)


def test_what_is_wrong_for_everybody_is_final_and_what_may_be_bad_luck_is_not(base, layout):
    work = Work("no/such/base", "float32", "cpu", layout, TOKENS)
    found = Worker().open(Posting(LocalConfig(), work, 1))
    assert isinstance(found, Fault) and found.final
    worker = Worker()
    worker.open(Posting(LocalConfig(), replace(work, base=base.ref), 1))
    found = worker.grade(None, None, None)
    assert isinstance(found, Fault) and not found.final


def test_a_reward_file_that_is_another_elsewhere_is_refused(base, layout, reward):
    posting = copied(Posting(LocalConfig(), Work(base.ref, "float32", "cpu", layout, reward), 1))
    Path(reward.grader.file).write_text(GRADE + "# changed")
    found = Worker().open(posting)
    assert isinstance(found, Fault) and found.final
    assert "is not here what it is where the run began" in found.problem


def test_each_worker_may_have_a_server_and_the_rewards_are_those_of_here(base, layout, tmp_path):
    """Greedy: a server draws with noise of its own."""
    grader = Conciseness()
    reward = Reward(grader, Decoding(max_tokens=8))
    engine = LocalEngine(base)
    ours = Alone(engine, layout, reward, 3).rewards(answered(generation(layout)), Stopwatch())
    with Contract(engine, "vllm") as one, Contract(engine, "vllm") as other:
        config = RayConfig(over=VllmConfig(), urls=(one.url, other.url))
        work = Work(base.ref, "float32", "cpu", layout, reward, 3)
        executor = Copying([Posting(own, work, 1) for own in config.engines])
        with closing(open_engine(own_engine(config), base.ref)) as first:
            expected = identity(first, reward)
        dispatch = Dispatch(executor, 2, expected, 1e9, 1e9, 0, lambda _: None)
        dispatch.open()
        crew = SharedOut(executor, dispatch, layout, 3)
        theirs = crew.rewards(answered(generation(layout)), Stopwatch())
        crew.close()
        assert one.completions and other.completions
        assert one.adapters == other.adapters == []
    assert len(np.unique(ours.reward_NE)) > 3
    np.testing.assert_array_equal(theirs.reward_NE, ours.reward_NE)


def answered(asked):
    """The same with rows that conciseness grades."""
    rows = tuple(
        replace(each, goal=Goal(each.ids_T, {"answer": "x" * n}))
        for n, each in enumerate(asked.batch.examples)
    )
    return replace(asked, batch=Batch(rows))
