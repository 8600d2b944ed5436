"""What an adapter is: where it sits, how strong it is, whether it acts, and what is odd about it.

Shapes: r rank, I inputs and O outputs of a site, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from weft.core.errors import InputError
from weft.engines.local import LocalEngine
from weft.formats.loaded import LoadedAdapter
from weft.model.adapter import Adapter, Layout, Site, Slot
from weft.model.base import Base, load_base
from weft.model.divergence import divergence
from weft.model.facts import skeleton
from weft.training.origin import check_origins
from weft.training.recorded import Recorded, recorded, some
from weft.training.refs import DEFAULT_BASE, Place, locate, read_adapter
from weft.training.replay import Verdict
from weft.training.replay import replay as replay_run
from weft.training.trial import examples, logits

USUAL_SCALES = (1e-3, 64.0)
"""Scales outside are legal and rarely meant."""
STANDS_OUT = 10.0
"""An update this many times the median of the sites is worth a look."""


@dataclass(frozen=True)
class SiteFacts:
    """One adapted weight matrix: dW = scale * B @ A, with Frobenius norms."""

    name: str
    kind: str
    layer: int | None
    inputs: int
    outputs: int
    rank: int
    scale: float
    norm_a: float
    norm_b: float
    norm_update: float
    norm_weight: float | None  # None without a base

    @property
    def relative(self) -> float | None:
        """The update's norm as a share of the weight's."""
        return self.norm_update / self.norm_weight if self.norm_weight else None


@dataclass(frozen=True)
class Effect:
    """What the adapter does to the logits of a few tokens, against the base alone."""

    positions: int
    kl: float  # KL(base || adapter), mean over positions
    largest_logit_change: float


@dataclass(frozen=True)
class Oddity:
    """Something that is rarely meant. `breaks`: the adapter cannot work like this."""

    what: str
    breaks: bool = False


@dataclass(frozen=True)
class AdapterFacts:
    """Everything there is to say about one adapter."""

    name: str
    path: Path
    parameters: int
    trainable: int
    why: str
    format: str
    scale_from: str
    alpha: float | None  # None where the format has no such thing
    dropout: float | None  # likewise
    sites: tuple[SiteFacts, ...]
    effect: Effect | None
    recorded: str | None  # what the run that made it says, where the files are that
    oddities: tuple[Oddity, ...]


@dataclass(frozen=True)
class BaseFacts:
    """The places of a base that can carry an adapter."""

    ref: str
    sites: tuple[Site, ...]

    @property
    def suffixes(self) -> dict[str, tuple[Site, ...]]:
        """Sites by the last part of their names: what `adapter.targets` may say."""
        names = dict.fromkeys(site.name.rpartition(".")[2] for site in self.sites)
        return {
            name: tuple(s for s in self.sites if s.name.rpartition(".")[2] == name)
            for name in names
        }


@dataclass(frozen=True)
class Inspection:
    """What a reference means: a base's sites, or one or several adapters over a base."""

    ref: str
    base: BaseFacts | None  # only for a reference to a base
    base_ref: str | None  # the base that was loaded; None when there was none
    adapters: tuple[AdapterFacts, ...]
    notes: tuple[str, ...]
    replayed: tuple[Verdict, ...] = ()  # of a run whose evidence was asked

    @property
    def broken(self) -> bool:
        """Whether an adapter cannot work as it is, or is not what its evidence makes."""
        breaks = any(oddity.breaks for adapter in self.adapters for oddity in adapter.oddities)
        return breaks or any(verdict.difference is not None for verdict in self.replayed)

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        record = asdict(self)
        for plain, facts in zip(record["adapters"], self.adapters, strict=True):
            plain["path"] = str(facts.path)
            for site, known in zip(plain["sites"], facts.sites, strict=True):
                site["relative"] = known.relative
        for plain, verdict in zip(record["replayed"], self.replayed, strict=True):
            plain["path"] = str(verdict.path)
        return record


def inspect(ref: str, *, base: str | None = None, replay: bool = False) -> Inspection:
    """Look at a base, an adapter directory, or the adapters of a run; nothing is changed.

    `base` defaults to the one that the adapter names. When that one cannot be loaded the files
    alone are looked at, and a note says so. `replay` makes the adapters of a run again from its
    evidence, and compares.
    """
    place = locate(ref)
    if replay and place.run is None:
        raise InputError(
            f"{ref} is not a run: only a run has the evidence from which it can be replayed"
        )
    if not place.adapters:
        name = base or place.base or DEFAULT_BASE
        return Inspection(ref, BaseFacts(name, tuple(skeleton(name).values())), name, (), ())
    loaded, notes = _load(base, place)
    config = loaded.model.config if loaded else None
    files = {name: read_adapter(path, base_config=config) for name, path in place.adapters.items()}
    origin, more = _origin(place, loaded)
    known = recorded(place.run) if place.run else {}
    if len(known) == 1:  # the only adapter of a run goes by the run's name
        known = dict.fromkeys(files, *known.values())
    adapters = tuple(
        adapter_facts(name, place.adapters[name], read, loaded, known.get(name), origin)
        for name, read in files.items()
    )
    sound = [read for read in files.values() if read.adapter.flat.isfinite().all()]
    said = dict.fromkeys(note for read in sound for note in read.notes)  # the others are `broken`
    verdicts = replay_run(place.run).check() if replay and place.run else ()
    notes = (*notes, *more, *said)
    return Inspection(ref, None, loaded.ref if loaded else None, adapters, notes, verdicts)


def adapter_facts(
    name: str,
    path: Path,
    files: LoadedAdapter,
    base: Base | None,
    recorded: Recorded | None = None,
    known: Sequence[Oddity] = (),
) -> AdapterFacts:
    """The facts of one adapter, read without regard to the base, which it may not fit.

    `recorded` is what its run says that it is; `known` are oddities that were found elsewhere.
    """
    adapter, config = files.adapter, files.config
    differences = list(recorded.problems(adapter.layout)) if recorded else []
    misfits = list(_misfits(adapter.layout, base.sites)) if base else []
    weights = {} if base is None or misfits else _weight_norms(adapter.layout, base)
    sites = tuple(_site_facts(adapter, weights))
    finite = bool(adapter.flat.isfinite().all())
    effect = measure_effect(adapter, base) if base and finite and not misfits else None
    oddities = [
        *known,
        *(Oddity(text, breaks=True) for text in differences),
        *(Oddity(text, breaks=True) for text in misfits),
        *_not_finite(adapter),
        *_zeros(adapter),
        *_scales(adapter.layout),
        *_strengths(sites),
        *_ineffective(adapter, effect),
    ]
    frozen = config.get("inference_mode")
    parameters = adapter.layout.size
    alpha, dropout = config.get("lora_alpha"), config.get("lora_dropout")
    return AdapterFacts(
        name=name,
        path=path,
        parameters=parameters,
        trainable=0 if frozen else parameters,
        why=_why(frozen),
        format=files.format,
        scale_from=files.scale_from,
        alpha=None if alpha is None else float(alpha),
        dropout=None if dropout is None else float(dropout),
        sites=sites,
        effect=effect,
        recorded=recorded.words if recorded and not differences else None,
        oddities=tuple(oddities),
    )


def update_norm(a_rI: torch.Tensor, b_Or: torch.Tensor) -> float:
    """|B @ A| without forming it: |BA|^2 = tr((B^T B)(A A^T)), in float64."""
    a_rI, b_Or = a_rI.double(), b_Or.double()
    squared = ((b_Or.T @ b_Or) * (a_rI @ a_rI.T)).sum()
    return float(squared.clamp(min=0.0).sqrt())


@torch.no_grad()
def measure_effect(adapter: Adapter, base: Base) -> Effect:
    """Compare the logits of a few tokens with and without the adapter, in one forward."""
    without_TV, with_TV = logits(base, (None, adapter), examples(base)[0])
    return Effect(
        positions=len(without_TV),
        kl=float(divergence(without_TV, with_TV).kl_ab.mean()),
        largest_logit_change=float((with_TV - without_TV).abs().max()),
    )


def _load(base: str | None, place: Place) -> tuple[Base | None, tuple[str, ...]]:
    """The base; when it was not asked for by name, its absence is a note and no error."""
    if base is not None:
        return load_base(base), ()
    if place.base is None:
        return None, ("the files name no base: give --base to compare with its weights",)
    try:
        return load_base(place.base), ()
    except InputError as error:
        return None, (f"only the files were looked at: {error.problem}",)


def _origin(place: Place, base: Base | None) -> tuple[list[Oddity], tuple[str, ...]]:
    """Whether the base has the weights that the adapter belongs to: oddities and notes."""
    if base is None:
        return [], ()
    try:
        return [], check_origins([(place.ref, place.origin)], LocalEngine(base))
    except InputError as error:
        return [Oddity(error.problem, breaks=True)], ()


def _why(frozen: bool | None) -> str:
    if frozen is None:
        return "its format has no mark for inference only"
    if frozen:
        return (
            "its files say `inference_mode: true`, saved for inference; it acts all the same "
            "(PEFT trains it further with `from_pretrained(..., is_trainable=True)`)"
        )
    return "its files say `inference_mode: false`"


def _site_facts(adapter: Adapter, weights: Mapping[str, float]) -> Iterator[SiteFacts]:
    for slot in adapter.layout.slots:
        a_rI, b_Or = adapter.sites[slot.site.name]
        yield SiteFacts(
            name=slot.site.name,
            kind=slot.site.kind,
            layer=slot.site.layer,
            inputs=slot.site.inputs,
            outputs=slot.site.outputs,
            rank=slot.rank,
            scale=slot.scale,
            norm_a=float(a_rI.double().norm()),
            norm_b=float(b_Or.double().norm()),
            norm_update=abs(slot.scale) * update_norm(a_rI, b_Or),
            norm_weight=weights.get(slot.site.name),
        )


def _weight_norms(layout: Layout, base: Base) -> dict[str, float]:
    weights = {s.site.name: base.model.get_submodule(s.site.name).weight for s in layout.slots}
    return {
        name: float(torch.linalg.vector_norm(weight, dtype=torch.float32))
        for name, weight in weights.items()
    }


def _misfits(layout: Layout, sites: Mapping[str, Site]) -> Iterator[str]:
    for slot in layout.slots:
        site = sites.get(slot.site.name)
        if site is None:
            yield f"{slot.site.name} is not a site of the base"
        elif (site.outputs, site.inputs) != (slot.site.outputs, slot.site.inputs):
            found, wanted = _shape(slot.site), _shape(site)
            yield f"{slot.site.name} is made for a weight of {found}, and the base has {wanted}"


def _shape(site: Site) -> str:
    return f"[{site.outputs}, {site.inputs}]"


def _not_finite(adapter: Adapter) -> Iterator[Oddity]:
    for name, pair in adapter.sites.items():
        for factor, tensor in zip("AB", pair, strict=True):
            bad = ~tensor.isfinite()
            if bad.any():
                row, column = bad.nonzero()[0].tolist()
                yield Oddity(
                    f"{name}: {int(bad.sum())} of {tensor.numel()} numbers of {factor} are not "
                    f"finite, the first is {tensor[row, column]} at [{row}, {column}]",
                    breaks=True,
                )


def _zeros(adapter: Adapter) -> Iterator[Oddity]:
    zero_a = [name for name, (a_rI, _) in adapter.sites.items() if not a_rI.any()]
    zero_b = [name for name, (_, b_Or) in adapter.sites.items() if not b_Or.any()]
    if len(zero_b) == len(adapter.sites):
        yield Oddity("B is zero at every site: the adapter changes nothing yet")
    elif zero_b:
        yield Oddity(f"B is zero at {some(zero_b)}: nothing is changed there")
    if dead := sorted(set(zero_a) & set(zero_b)):
        yield Oddity(f"A and B are both zero at {some(dead)}: no gradient can ever move them")
    elif zero_a:
        yield Oddity(f"A is zero at {some(zero_a)}: nothing is changed there")


def _scales(layout: Layout) -> Iterator[Oddity]:
    low, high = USUAL_SCALES
    far = [slot for slot in layout.slots if not low <= slot.scale <= high]
    for value, slots in _by_scale(far).items():
        word = "is above" if value > high else "is below"
        limit = high if value > high else low
        yield Oddity(f"scale {value:g} at {some(slots)} {word} {limit:g}, which is rarely meant")
    values = sorted({slot.scale for slot in layout.slots})
    if len(values) > 1:
        parts = [f"{value:g} at {some(names)}" for value, names in _by_scale(layout.slots).items()]
        yield Oddity(
            f"scales differ between sites ({'; '.join(parts)}): a rank of its own "
            "(`rank_pattern`) keeps the common alpha unless `alpha_pattern` changes that, too"
        )


def _by_scale(slots: Sequence[Slot]) -> dict[float, list[str]]:
    found: dict[float, list[str]] = {}
    for slot in slots:
        found.setdefault(slot.scale, []).append(slot.site.name)
    return found


def _strengths(sites: Sequence[SiteFacts]) -> Iterator[Oddity]:
    known = {site.name: site.relative for site in sites if site.relative is not None}
    for name, relative in known.items():
        if relative > 1:
            yield Oddity(f"{name}: the update is {relative:.3g} times as large as the weight")
    middle = median(known.values()) if known else 0.0
    if middle > 0:
        strong = [n for n, r in known.items() if STANDS_OUT * middle < r <= 1]
        if strong:
            yield Oddity(
                f"the update at {some(strong)} is more than {STANDS_OUT:g} times the median "
                f"({middle:.2%} of the weight)"
            )


def _ineffective(adapter: Adapter, effect: Effect | None) -> Iterator[Oddity]:
    acts = any(a_rI.any() and b_Or.any() for a_rI, b_Or in adapter.sites.values())
    if effect and acts and effect.largest_logit_change == 0:
        yield Oddity("the logits are exactly the base's although B is not zero", breaks=True)
