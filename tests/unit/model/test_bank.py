"""Banks of several adapters against the dense updates that they stand for."""

import pytest
import torch

from weft.model.adapter import Adapter, Layout, Site, Slot
from weft.model.bank import Bank

SITES = [Site(name, "linear", 7, 5, None) for name in "xyz"]


def adapter(seed: int, **ranks_and_scales: tuple[int, float]) -> Adapter:
    """A random adapter; `x=(2, 0.5)` gives site x rank 2 and scale 0.5."""
    slots = tuple(Slot(s, *ranks_and_scales[s.name]) for s in SITES if s.name in ranks_and_scales)
    layout = Layout(slots)
    generator = torch.Generator().manual_seed(seed)
    return Adapter(layout, torch.randn(layout.size, generator=generator))


def dense(adapters: list[Adapter | None], site: str) -> torch.Tensor:
    """The sum of their updates at a site, in float64."""
    dw_OI = torch.zeros(5, 7, dtype=torch.float64)
    for one in adapters:
        if one is not None and site in one.sites:
            a_rI, b_Or = one.sites[site]
            dw_OI += one.layout.by_name[site].scale * (b_Or.double() @ a_rI.double())
    return dw_OI


MEMBERS = [adapter(1, x=(2, 0.5), y=(1, 3.0)), None, adapter(2, x=(1, 2.0))]
STACKS = [adapter(3, x=(3, 0.7), z=(2, 1.0)), adapter(4, y=(1, 4.0)), None]


def test_members_over_stacks_are_the_sums_of_their_updates():
    bank = Bank.of(dict(zip("abc", MEMBERS, strict=True)))
    both = bank.over(Bank.of(dict(zip("012", STACKS, strict=True))))
    assert both.members == ("a", "b", "c")
    assert set(both.sites) == set("xyz")
    for site, weave in both.sites.items():
        dw_NOI = weave.scale_N11 * (weave.b_NOr @ weave.a_NrI)
        for n, pair in enumerate(zip(MEMBERS, STACKS, strict=True)):
            expected = dense(list(pair), site)
            torch.testing.assert_close(dw_NOI[n].double(), expected, rtol=1e-6, atol=1e-6)


def test_members_over_nothing_are_themselves():
    bank = Bank.of(dict(zip("abc", MEMBERS, strict=True)))
    assert bank.over(Bank(("0", "1", "2"), {})).sites == bank.sites


def test_every_member_needs_a_stack():
    bank = Bank.of(dict(zip("abc", MEMBERS, strict=True)))
    with pytest.raises(AssertionError):
        bank.over(Bank.of({"0": STACKS[0]}))


def test_a_member_alone_is_an_adapter_of_one_rank_and_scale_one():
    bank = Bank.of(dict(zip("abc", MEMBERS, strict=True)))
    sites = {site.name: site for site in SITES}
    for number, member in enumerate(MEMBERS):
        alone = bank.adapter(number, sites)
        assert (alone is None) == (member is None)
        if alone is not None:
            assert set(alone.sites) == set(member.sites), "places that it does not change are out"
            assert {(slot.rank, slot.scale) for slot in alone.layout.slots} == {(2, 1.0)}
            for site in "xyz":
                torch.testing.assert_close(dense([alone], site), dense([member], site))
