"""Many adapters over one frozen base, in one forward.

Shapes: N members, r rank, I and O the inputs and outputs of a site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from weft.model.adapter import Adapter, Layout, Site, Slot


@dataclass(frozen=True, eq=False)
class Weave:
    """The factors of N members at one site: y[n] += scale[n] * (x[n] @ A[n]^T) @ B[n]^T."""

    a_NrI: torch.Tensor
    b_NOr: torch.Tensor
    scale_N11: torch.Tensor

    def alike(self, one: int, other: int) -> bool:
        """Whether two members add the same here: by equal factors, or nothing."""
        b_Or, other_Or = (self.b_NOr[n] * self.scale_N11[n] for n in (one, other))
        if not torch.equal(b_Or, other_Or):
            return False
        return torch.equal(self.a_NrI[one], self.a_NrI[other]) or not b_Or.any()


@dataclass(frozen=True, eq=False)
class Bank:
    """N members by name. A member whose B is zero everywhere is the base itself."""

    members: tuple[str, ...]
    sites: Mapping[str, Weave]

    @classmethod
    def from_flat(cls, members: Sequence[str], layout: Layout, flat_NP: torch.Tensor) -> Bank:
        """Members of one layout, as views of `flat_NP` through which gradients flow."""
        count = len(members)
        factors = layout.factors(flat_NP)
        scales = {slot.site.name: slot.scale for slot in layout.slots}
        sites = {
            name: Weave(a, b, torch.full((count, 1, 1), scales[name], device=flat_NP.device))
            for name, (a, b) in factors.items()
        }
        return cls(tuple(members), sites)

    @classmethod
    def of(cls, members: Mapping[str, Adapter | None]) -> Bank:
        """Adapters of any layouts side by side; None is the base itself.

        The bank covers the union of their sites; smaller ranks and missing sites are filled with
        zeros, which changes no member's function.
        """
        adapters = list(members.values())
        slots: dict[str, list[tuple[int, torch.Tensor, torch.Tensor, float]]] = {}
        for index, adapter in enumerate(adapters):
            if adapter is None:
                continue
            for name, (a_rI, b_Or) in adapter.sites.items():
                scale = adapter.layout.by_name[name].scale
                slots.setdefault(name, []).append((index, a_rI, b_Or, scale))
        sites = {name: _padded(len(adapters), parts) for name, parts in slots.items()}
        return cls(tuple(members), sites)

    def part(self, start: int, stop: int) -> Bank:
        """Members start..stop-1 only."""
        here = slice(start, stop)
        sites = {
            name: Weave(w.a_NrI[here], w.b_NOr[here], w.scale_N11[here])
            for name, w in self.sites.items()
        }
        return Bank(self.members[here], sites)

    def only(self, members: Sequence[int]) -> Bank:
        """These members, in this order."""
        at = list(members)
        if at == list(range(len(self.members))):
            return self
        sites = {
            name: Weave(w.a_NrI[at], w.b_NOr[at], w.scale_N11[at]) for name, w in self.sites.items()
        }
        return Bank(tuple(self.members[i] for i in at), sites)

    def alike(self) -> list[list[int]]:
        """The members in groups that are the same function by the same numbers."""
        groups: list[list[int]] = []
        for member in range(len(self.members)):
            for group in groups:
                if all(weave.alike(member, group[0]) for weave in self.sites.values()):
                    group.append(member)
                    break
            else:
                groups.append([member])
        return groups

    def adapter(self, member: int, sites: Mapping[str, Site]) -> Adapter | None:
        """One member as an adapter of one rank and scale 1; None if it is the base itself.

        `sites` are those of the base. Scales go into B, and places that it does not change are
        left out.
        """
        slots, parts = [], []
        for name, weave in self.sites.items():
            a_rI, b_Or = weave.a_NrI[member], weave.b_NOr[member] * weave.scale_N11[member]
            if b_Or.any():
                slots.append(Slot(sites[name], a_rI.shape[0], 1.0))
                parts.append((a_rI, b_Or))
        if not slots:
            return None
        rank = max(slot.rank for slot in slots)
        layout = Layout(tuple(replace(slot, rank=rank) for slot in slots))
        flat = torch.zeros(layout.size)
        for (a_rI, b_Or), (into_a, into_b) in zip(
            parts, layout.factors(flat).values(), strict=True
        ):
            into_a[: a_rI.shape[0]] = a_rI
            into_b[:, : b_Or.shape[1]] = b_Or
        return Adapter(layout, flat)

    def over(self, stacks: Bank) -> Bank:
        """The same members, each on the stack at its place: ranks add up, scales go into B."""
        assert len(self.members) == len(stacks.members)
        sites = dict(stacks.sites)
        for name, weave in self.sites.items():
            below = sites.get(name)
            sites[name] = weave if below is None else _joined(weave, below)
        return Bank(self.members, sites)

    def to(self, device: torch.device) -> Bank:
        """The same bank on another device."""
        moved = {
            name: Weave(w.a_NrI.to(device), w.b_NOr.to(device), w.scale_N11.to(device))
            for name, w in self.sites.items()
        }
        return Bank(self.members, moved)


def _joined(above: Weave, below: Weave) -> Weave:
    both = (above, below)
    a_NrI = torch.cat([weave.a_NrI for weave in both], dim=1)
    b_NOr = torch.cat([weave.b_NOr * weave.scale_N11 for weave in both], dim=2)
    return Weave(a_NrI, b_NOr, torch.ones_like(above.scale_N11))


def _padded(count: int, parts: list[tuple[int, torch.Tensor, torch.Tensor, float]]) -> Weave:
    rank = max(a_rI.shape[0] for _, a_rI, _, _ in parts)
    _, a, b, _ = parts[0]
    a_NrI = a.new_zeros(count, rank, a.shape[1])
    b_NOr = b.new_zeros(count, b.shape[0], rank)
    scale_N11 = a.new_zeros(count, 1, 1)
    for index, a_rI, b_Or, scale in parts:
        a_NrI[index, : a_rI.shape[0]] = a_rI
        b_NOr[index, :, : b_Or.shape[1]] = b_Or
        scale_N11[index] = scale
    return Weave(a_NrI, b_NOr, scale_N11)
