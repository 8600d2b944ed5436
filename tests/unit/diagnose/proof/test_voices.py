"""Tokens that plain scripts drew, each in its own way, drawn again: seeds exchanged."""

# ruff: noqa: NPY002 - scripts draw from global generators
from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.evidence import Side
from tests.unit.diagnose.proof.conftest import updates
from weft.diagnose.finding import Cause, Diagnosis, Finding, Swap
from weft.diagnose.proof.drawing import candidates, starts
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.prove import prove
from weft.diagnose.proof.replica import Replica, Row, Sampler
from weft.diagnose.proof.voices import Voices, apart
from weft.diagnose.sides.evidence import Pair
from weft.runs.evidence import Seeded, Weights

PROMPTS = [(5, 17, 80, 3), (44, 9, 9, 61, 7, 2), (30, 12, 55)]
COUNT = 6
DRAWN = Sampler(greedy=False, temperature=0.9)


def ranked(choose):
    def draw(p):
        p, order = p.sort(descending=True)
        return int(order[choose(p)])

    return draw


def top(k):
    def draw(p):
        best = p.topk(k)
        return int(best.indices[torch.multinomial(best.values / best.values.sum(), 1)])

    return draw


def exponential(p):
    return int((p / torch.empty_like(p).exponential_(1)).argmax())


def uniform_gumbel(p):
    return int((p.log() - torch.log(-torch.log(torch.rand(len(p))))).argmax())


def crossing(p):
    return int((p.cumsum(-1) > torch.rand(())).nonzero()[0])


def found(p):
    return int(torch.searchsorted(p.cumsum(-1), torch.rand(1)))


def normal(p):
    return (p.double() / p.double().sum()).numpy()


def python_choices(p):
    return random.choices(range(len(p)), weights=p.tolist())[0]


class NewNumbers:
    """A script's own generator of NumPy."""

    def seed(self, seed):
        self.numbers = np.random.default_rng(seed)

    def __call__(self, p):
        return int(self.numbers.choice(len(p), p=normal(p)))


NEW = NewNumbers()

SCRIPTS = {
    "multinomial": ("torch", torch.manual_seed, lambda p: int(torch.multinomial(p, 1))),
    "multinomial by rank": (
        "torch", torch.manual_seed, ranked(lambda p: torch.multinomial(p, 1)),
    ),
    "Categorical": (
        "torch", torch.manual_seed, lambda p: int(torch.distributions.Categorical(p).sample()),
    ),
    "divided by exponentials": ("torch", torch.manual_seed, exponential),
    "Gumbel noise of rand": ("torch", torch.manual_seed, uniform_gumbel),
    "Gumbel distribution": (
        "torch", torch.manual_seed,
        lambda p: int((p.log() + torch.distributions.Gumbel(0, 1).sample(p.shape)).argmax()),
    ),
    "cumsum over rand": ("torch", torch.manual_seed, crossing),
    "searchsorted": ("torch", torch.manual_seed, found),
    "cumsum by rank": ("torch", torch.manual_seed, ranked(crossing)),
    "np.random.choice": (
        "numpy", np.random.seed, lambda p: int(np.random.choice(len(p), p=normal(p))),
    ),
    "default_rng.choice": ("numpy", NEW.seed, NEW),
    "np.random.gumbel": (
        "numpy", np.random.seed,
        lambda p: int((p.double().log().numpy() + np.random.gumbel(size=len(p))).argmax()),
    ),
    "np.random.multinomial": (
        "numpy", np.random.seed, lambda p: int(np.random.multinomial(1, normal(p)).argmax()),
    ),
    "random.choices": ("python", random.seed, python_choices),
}  # fmt: skip


@torch.no_grad()
def said(base, library, seeder, choose, seed, *, before=0, told=True, keep=False, temperature=0.9,
         adapter=None):  # fmt: skip
    """A script that draws, and what is recorded of it; `before`: draws ahead of the first."""
    model = AutoModelForCausalLM.from_pretrained(base.load).eval()
    side = Side().add(Weights(model="model-0", name="base", load=base.load, dtype="float32"))
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    settings = {"greedy": False, "temperature": temperature}
    seeder(seed)
    if told:
        side.add(Seeded(library=library, seed=seed))
    torch.rand(before)
    state = torch.get_rng_state().numpy().copy()
    for number, prompt in enumerate(PROMPTS):
        tokens = []
        side.forward([prompt])
        for _ in range(COUNT):
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            tokens.append(choose((logits / temperature).softmax(-1)))
        side.generation([prompt], [tokens], [number], settings=settings)
        if keep and prompt is PROMPTS[0]:
            first = side.events.pop()
            side.add(first, state=state)
    torch.set_rng_state(kept[0])
    np.random.set_state(kept[1])
    random.setstate(kept[2])
    return side.evidence


def rows(side):
    return tuple(Row(each.prompts[0], tokens=each.tokens[0]) for each in side.generations)


def voices(base, a, b, mine=DRAWN, its=DRAWN):
    return Voices(
        Engine(),
        Pair(a, b),
        Replica("A", base, rows=rows(a), sampler=mine),
        Replica("B", base, rows=rows(b), sampler=its),
    )


def share(a, b):
    return apart(*([each.tokens[0] for each in side.generations] for side in (a, b)))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_seed_gives_the_others_tokens_whatever_the_way_of_drawing(script, base_on_disk):
    base = base_on_disk()
    library, seeder, choose = SCRIPTS[script]
    a, b = (said(base, library, seeder, choose, seed) for seed in (3, 4))
    made = voices(base, a, b).seeds()
    assert made is not None, "no way of drawing gives these tokens"
    assert made.gap == made.opens == pytest.approx(share(a, b))
    assert made.gap > 0.5
    assert made.closes == 0


def test_top_k_draws_over_what_it_kept(base_on_disk):
    base = base_on_disk()
    cold = Sampler(greedy=False, temperature=0.9, top_k=20)
    a, b = (said(base, "torch", torch.manual_seed, top(20), seed) for seed in (3, 4))
    made = voices(base, a, b, cold, cold).seeds()
    assert (made.closes, made.opens) == (0, made.gap)


def test_tokens_of_mlx_are_drawn_again(base_on_disk):
    mx = pytest.importorskip("mlx.core")
    base = base_on_disk()

    def choose(p):
        return int(mx.random.categorical(mx.array(p.log().numpy())[None])[0])

    a, b = (said(base, "mlx", mx.random.seed, choose, seed) for seed in (3, 4))
    made = voices(base, a, b).seeds()
    assert (made.closes, made.opens) == (0, made.gap)


@torch.no_grad()
def test_wefts_own_draws_are_drawn_again(base_on_disk):
    """With the chooser that Weft generates with; one prompt comes twice."""
    from weft.model.decoding import Decoding
    from weft.model.sampling import Chooser

    base = base_on_disk()
    model = AutoModelForCausalLM.from_pretrained(base.load).eval()
    prompts = [*PROMPTS[:2], PROMPTS[0]]
    sides = []
    for seed in (3, 4):
        side = Side()
        side.add(Seeded(library="weft", seed=seed))
        chooser = Chooser(Decoding(temperature=0.9, seed=seed), [np.array(p) for p in prompts])
        spoken = [[] for _ in prompts]
        for _ in range(COUNT):
            whole = [[*p, *t] for p, t in zip(prompts, spoken, strict=True)]
            logits = torch.stack([model(torch.tensor([each])).logits[0, -1] for each in whole])
            for tokens, token in zip(spoken, chooser(logits, range(3), whole), strict=True):
                tokens.append(int(token))
        for number, (prompt, tokens) in enumerate(zip(prompts, spoken, strict=True)):
            side.forward([prompt]).generation([prompt], [tokens], [number], driver="weft")
        sides.append(side.evidence)
    assert sides[0].generations[0].tokens != sides[0].generations[2].tokens
    made = voices(base, *sides).seeds()
    assert (made.closes, made.opens) == (0, made.gap)


def test_numbers_that_were_drawn_before_are_known_by_the_state(base_on_disk):
    """One seed in both, and an adapter made in one of them: the state before the first draw says
    where its numbers begin."""
    base = base_on_disk()
    _, seeder, choose = SCRIPTS["multinomial"]
    a, b = (said(base, "torch", seeder, choose, 3, before=n, keep=True) for n in (0, 1000))
    made = voices(base, a, b).seeds()
    assert (made.closes, made.opens) == (0, made.gap)
    untold = said(base, "torch", seeder, choose, 3, before=1000)
    only_a = voices(base, a, untold).seeds()  # B's seed does not give B's tokens, A's gives A's
    assert only_a.closes == 0


def test_a_side_without_a_seed_is_given_the_others(base_on_disk):
    base = base_on_disk()
    _, seeder, choose = SCRIPTS["multinomial"]
    a, b = (
        said(base, "torch", seeder, choose, 3),
        said(base, "torch", seeder, choose, 4, told=False),
    )
    for made in (voices(base, a, b).seeds(), voices(base, b, a).seeds()):
        assert made.closes == 0 and made.opens > 0.5


def test_draws_that_no_way_gives_are_tested_against_their_distribution(base_on_disk):
    base = base_on_disk()

    def odd(p):  # numbers of two generators, one after the other
        return (
            crossing(p)
            if torch.rand(()) < 0.5
            else int(torch.multinomial(p.flip(-1), 1)) * 0
            + (len(p) - 1 - int(torch.multinomial(p.flip(-1), 1)))
        )

    a, b = (said(base, "torch", torch.manual_seed, odd, seed) for seed in (3, 4))
    heard = voices(base, a, b)
    assert heard.seeds() is None
    words = heard.agree()
    assert words is not None and "A: 18 tokens" in words and "B: 18 tokens" in words


def test_tokens_of_another_distribution_do_not_agree(base_on_disk):
    """B always takes one of the least likely tokens."""
    base = base_on_disk()
    _, seeder, choose = SCRIPTS["multinomial"]
    a = said(base, "torch", seeder, choose, 3)
    b = said(base, "torch", seeder, lambda p: int((-p).topk(5).indices[0]), 4)
    far = Sampler(greedy=False, temperature=0.9, top_k=40)
    assert voices(base, a, b, far, far).agree() is None


def proved(a, b, factor, *places):
    finding = Finding(9, "factor", factor, "place", f"other {factor}", swap=Swap(factor, places))
    causes = (Cause(finding, "located"),)
    return prove(Pair(a, b), Diagnosis("a", "b", "different", "words", causes))


def test_seed_is_proven_where_tokens_are_drawn_again(base_on_disk):
    base = base_on_disk()
    a, b = (said(base, *SCRIPTS["Categorical"], seed) for seed in (3, 4))
    (cause,) = proved(a, b, "seed").causes
    assert (cause.confidence, cause.gap_closed, cause.reproduces) == ("proven", 1.0, 1.0)


def test_seed_is_supported_where_tokens_are_of_one_distribution(base_on_disk):
    base = base_on_disk()

    def odd(p):
        """From the last token to the first."""
        return len(p) - 1 - int(torch.multinomial(p.flip(-1), 1))

    a, b = (said(base, "torch", torch.manual_seed, odd, seed) for seed in (3, 4))
    found = proved(a, b, "seed")
    (cause,) = found.causes
    assert cause.confidence == "supported"
    assert "draws from one distribution" in cause.proof[0]
    assert any("how it was drawn is not known" in words for words in found.not_checked)


def test_sampler_that_changes_no_choice_is_no_cause(base_on_disk):
    """It is suspected, and A with B's sampler draws from what it drew from."""
    base = base_on_disk()
    a, b = (said(base, *SCRIPTS["multinomial"], seed) for seed in (3, 4))
    found = proved(a, b, "sampler", "temperature")
    assert found.causes == ()
    assert "exchanging it changes nothing" in found.harmless[0]


def test_sampler_that_replicas_do_not_have_is_not_cleared(base_on_disk):
    base = base_on_disk()
    a, b = (said(base, *SCRIPTS["multinomial"], seed) for seed in (3, 4))
    (cause,) = proved(a, b, "sampler", "order of filters").causes
    assert cause.confidence == "located"


def test_another_temperature_is_proven_as_the_sampler(base_on_disk):
    base = base_on_disk()
    a, b = (said(base, *SCRIPTS["multinomial"], 3, temperature=t) for t in (0.9, 1.4))
    (cause,) = proved(a, b, "sampler", "temperature").causes
    assert (cause.confidence, cause.gap_closed) == ("proven", 1.0)


def test_equal_tokens_show_nothing_of_seeds(base_on_disk):
    base = base_on_disk()
    _, seeder, choose = SCRIPTS["multinomial"]
    a, b = (said(base, "torch", seeder, choose, 3) for _ in "ab")
    assert voices(base, a, b).seeds() is None


def test_numbers_do_not_make_up_for_other_logits(base_on_disk):
    """One seed, and an adapter in B alone that nothing has exchanged: B's tokens stay B's."""
    base = base_on_disk()
    _, seeder, choose = SCRIPTS["multinomial"]
    a, b = (said(base, "torch", seeder, choose, seed) for seed in (3, 4))
    heard = voices(base, a, b)
    model = AutoModelForCausalLM.from_pretrained(base.load)
    other = heard.b.with_(adapter=updates(model, "q_proj down_proj lm_head", 8.0))
    made = Voices(heard.engine, heard.pair, heard.a, other).seeds()
    assert made.closes > 0


def test_the_last_seed_before_the_first_completion_counts():
    side = Side().add(Seeded(library="torch", seed=1)).add(Seeded(library="torch", seed=2))
    side.add(Seeded(library="numpy", seed=5)).generation([(1,)], [(2,)])
    side.add(Seeded(library="torch", seed=9))
    assert starts(side.evidence) == {"torch": 2, "numpy": 5}
    assert {each.library for each in candidates(side.evidence)} == {"torch", "numpy"}
