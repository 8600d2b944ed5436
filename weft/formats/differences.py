"""How far the updates of two adapters, or of an adapter and a merged model, are apart.

Shapes: O outputs and I inputs of a site, r rank, q both ranks together.
"""

from __future__ import annotations

import torch

from weft.formats.certificate import SiteRecord, Strength
from weft.model.adapter import Adapter
from weft.model.base import DTYPES, Base
from weft.model.config import DType

UPDATE_TOLERANCE = 1e-6
"""Largest relative difference of a site's update between two adapters: some roundings of fp32."""


def rounding_unit(dtype: DType) -> float:
    """The largest relative error of rounding one number to a dtype."""
    return torch.finfo(DTYPES[dtype]).eps / 2


def strengths(adapter: Adapter) -> dict[str, Strength]:
    """Rank and scale at every site."""
    return {s.site.name: Strength(rank=s.rank, scale=s.scale) for s in adapter.layout.slots}


def site_records(source: Adapter, result: Adapter) -> dict[str, SiteRecord]:
    """Every site of either adapter, and how far the two updates are apart."""
    before, after = strengths(source), strengths(result)
    return {
        name: SiteRecord(
            source=before.get(name),
            result=after.get(name),
            update_difference=update_difference(_factors(source, name), _factors(result, name)),
            update_tolerance=UPDATE_TOLERANCE,
        )
        for name in {**before, **after}
    }


def merged_records(
    base: Base, merged: Base, adapter: Adapter, dtype: DType
) -> dict[str, SiteRecord]:
    """Every adapted weight of a merged model in `dtype`, and how far it is from W + dW."""
    found = {}
    for name, strength in strengths(adapter).items():
        before, after = (m.model.get_submodule(name).weight.double() for m in (base, merged))
        factors = _factors(adapter, name)
        assert factors is not None
        dw = factors[1] @ factors[0]
        if adapter.layout.by_name[name].site.kind == "conv1d":
            dw = dw.T
        wanted = before.cpu() + dw
        size = float(dw.norm()) or float(wanted.norm()) or 1.0
        # below the smallest normal number, what is rounded is a share of that one
        least = torch.finfo(DTYPES[dtype]).tiny * wanted.numel() ** 0.5
        rounded = rounding_unit(dtype) * (float(wanted.norm()) + least)
        found[name] = SiteRecord(
            source=strength,
            result=None,
            update_difference=float((after.cpu() - wanted).norm()) / size,
            update_tolerance=rounded * (1 + 1e-3) / size,
        )
    return found


Factors = tuple[torch.Tensor, torch.Tensor] | None
"""A [r, I] and scale * B [O, r] in float64; None where a site is not adapted."""


def update_difference(source: Factors, result: Factors) -> float:
    """|dW - dW'| / |dW| of the larger dW, without forming either; 0 where both are zero.

    The difference is one low-rank product [sB, -s'B'] @ [A; A'], whose norm is that of the two
    triangles of its factors. The Grams of the factors would give the same number, but not below
    1e-8: there they subtract squares that agree in all their digits.
    """
    if source is None or result is None:
        return 0.0 if _norm(source) == _norm(result) == 0 else 1.0
    (a_rI, b_Or), (other_rI, other_Or) = source, result
    if torch.equal(a_rI, other_rI) and torch.equal(b_Or, other_Or):
        return 0.0
    apart = _norm((torch.cat([a_rI, other_rI]), torch.cat([b_Or, -other_Or], dim=1)))
    size = max(_norm(source), _norm(result))
    return apart / size if size else 0.0


def _norm(factors: Factors) -> float:
    """|B @ A|, Frobenius, without forming it."""
    if factors is None:
        return 0.0
    a_qI, b_Oq = factors
    left_qq = torch.linalg.qr(b_Oq, mode="r").R
    right_qq = torch.linalg.qr(a_qI.T, mode="r").R
    return float(torch.linalg.norm(left_qq @ right_qq.T))


def _factors(adapter: Adapter, site: str) -> Factors:
    slot = adapter.layout.by_name.get(site)
    if slot is None:
        return None
    a_rI, b_Or = (factor.detach().cpu().double() for factor in adapter.sites[site])
    return a_rI, slot.scale * b_Or
