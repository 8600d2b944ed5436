"""How members x prompts are cut into tiles by the memory of their keys and values."""

import pytest

from weft.engines.tiles import tiles

LENGTHS = (40, 8, 25, 8, 31, 12, 90)
CASES = [
    (members, budget, most)
    for members in (1, 3, 30)
    for budget in (1, 150, 500, 1_500, 7_000, 10**6)
    for most in (None, 2)
]


def cut(members, budget, most=None, lengths=LENGTHS, **settings):
    return tiles(members, lengths, 10, 1, budget, most_members=most, **settings)


@pytest.mark.parametrize(("members", "budget", "most"), CASES)
def test_every_member_is_on_every_prompt_once(members, budget, most):
    rows = [
        (member, prompt)
        for tile in cut(members, budget, most)
        for member in range(tile.start, tile.stop)
        for prompt in tile.prompts
    ]
    assert sorted(rows) == [(m, p) for m in range(members) for p in range(len(LENGTHS))]


@pytest.mark.parametrize(("members", "budget", "most"), CASES)
def test_a_tile_fits_the_budget_or_is_one_row(members, budget, most):
    for tile in cut(members, budget, most):
        rows = (tile.stop - tile.start) * len(tile.prompts)
        assert tile.bytes == rows * (max(LENGTHS[i] for i in tile.prompts) + 10)
        assert tile.bytes <= budget or rows == 1
        assert tile.stop - tile.start <= (most or members)


@pytest.mark.parametrize(("members", "budget", "most"), CASES)
def test_the_members_of_a_tile_alone_are_cut_as_among_the_others(members, budget, most):
    whole = cut(members, budget, most)
    for start, stop in {(tile.start, tile.stop) for tile in whole}:
        alone = cut(stop - start, budget, most)
        assert [tile.prompts for tile in alone] == [
            tile.prompts for tile in whole if tile.start == start
        ]
        assert {(tile.start, tile.stop) for tile in alone} == {(0, stop - start)}


def test_tiles_are_of_whole_members_and_of_like_size():
    assert [(t.start, t.stop) for t in cut(31, budget=30 * 700)] == [(0, 15), (15, 31)]


def test_where_no_member_fits_prompts_of_like_lengths_share_a_tile():
    assert [t.prompts for t in cut(2, budget=300)] == [(1, 3), (5, 2), (4, 0, 6)] * 2


def test_no_text_is_longer_than_the_context():
    (tile,) = cut(1, budget=420, context=60)
    assert tile.bytes == 7 * 60


def test_nothing_asked_for_needs_no_tile():
    assert cut(0, 100) == cut(3, 100, lengths=()) == []
