"""What a run recorded of its adapters, and whether the files beside it are that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.core.files import Record
from weft.model.adapter import Layout
from weft.runs.reader import RunReader
from weft.training.config import RunConfig
from weft.training.resolve import from_record


@dataclass(frozen=True)
class Recorded:
    """The adapter that one member of a run must have: rank, why it is that, and scales."""

    rank: int
    why: str
    scales: Mapping[str, float]  # by site

    @property
    def words(self) -> str:
        """As recorded, for people."""
        scales = sorted(set(self.scales.values()))
        shown = f"scale {scales[0]:g}" if len(scales) == 1 else f"{len(scales)} scales"
        return f"rank {self.rank}{self.why}, {shown}, {len(self.scales)} sites"

    def problems(self, layout: Layout) -> Iterator[str]:
        """In what an adapter is another one."""
        found = layout.by_name
        if missing := [name for name in self.scales if name not in found]:
            yield f"{some(missing)} had an adapter in the run, and the files have none there"
        if foreign := [name for name in found if name not in self.scales]:
            yield f"{some(foreign)} had no adapter in the run, and the files have one there"
        for rank, names in _by(lambda name: found[name].rank, found).items():
            if rank != self.rank:
                yield f"the run recorded rank {self.rank}{self.why}; {some(names)} has rank {rank}"
        wrong = [n for n in self.scales if n in found and found[n].scale != self.scales[n]]
        for name in wrong[:SHOWN]:
            yield (
                f"{name}: its run was trained at scale {self.scales[name]:g}, and the files give "
                f"alpha / rank = {found[name].scale:g}"
            )
        if len(wrong) > SHOWN:
            yield f"the scale is another one at {len(wrong) - SHOWN} more sites"


SHOWN = 3
"""Sites whose scale is wrong that are told one by one."""


def recorded(root: Path) -> dict[str, Recorded]:
    """What the manifest, results and steps of a finished run say of its kept adapters, by member.

    The only member of a run goes by the name of its lane. Runs of an older Weft, which recorded
    no sites, have nothing to say.
    """
    reader = RunReader(root)
    manifest = reader.manifest
    if not manifest.sites:
        return {}
    config = from_record(manifest.config, manifest.origins, str(reader.layout.manifest)).config
    scales = {name: float(facts["scale"]) for name, facts in manifest.sites.items()}
    (rank, *_) = {int(facts["rank"]) for facts in manifest.sites.values()}
    steps = reader.steps() if config.boost is not None else []
    found = {}
    for lane in config.lanes:
        if config.boost is None:
            found[lane.name] = Recorded(rank, "", scales)
            continue
        alone = len(config.lanes) == 1
        own = [step for step in steps if alone or step["member"] == lane.name]
        kept = max((step["step"] for step in own), default=0)
        if config.keep == "best":
            kept = reader.kept_step(None if alone else lane.name)
        commits, is_open = _rounds(config, manifest.events, lane.name, own, kept)
        ranks = max(rank * (commits + is_open), rank)
        found[lane.name] = Recorded(ranks, _why(commits, rank, ranks), scales)
    return found


def _rounds(
    config: RunConfig,
    events: Sequence[Mapping[str, Any]],
    member: str,
    steps: Sequence[Record],
    kept: int,
) -> tuple[int, bool]:
    """Commits that the adapter of step `kept` holds, and whether the round then open had moved.

    A round that ends on a plateau does so after the evaluation of its step, and so after what
    that evaluation kept.
    """
    assert config.boost is not None
    last = kept - 1 if config.boost.plateau is not None else kept
    ended = [
        event
        for event in events
        if event["kind"] in ("commit", "restart")
        and event["member"] == member
        and event["step"] <= last
    ]
    since = max((event["step"] for event in ended), default=0)
    moved = any(since < step["step"] <= kept and step["update_norm"] > 0 for step in steps)
    return sum(event["kind"] == "commit" for event in ended), moved


def _why(commits: int, rank: int, ranks: int) -> str:
    """The sum that a rank is."""
    if not commits:
        return " (no commit)"
    total = f" = {commits} commit{'s' if commits > 1 else ''} of rank {rank}"
    return total + (" and the open round" if ranks > commits * rank else "")


def _by(value: Any, names: Mapping[str, Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = {}
    for name in names:
        groups.setdefault(value(name), []).append(name)
    return groups


def some(names: Sequence[str]) -> str:
    """A few names, and how many there are."""
    if len(names) == 1:
        return names[0]
    return f"{len(names)} sites ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
