"""Rung 4: which modules have an adapter, of what rank, from what start, and what may be trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from weft.diagnose.compare.algebra import rank as rank_of_product
from weft.diagnose.compare.align import modules
from weft.diagnose.compare.operators import Applied, Operator, adapter, operators, path_scale
from weft.diagnose.compare.places import group
from weft.diagnose.finding import Finding, Looked, Swap
from weft.diagnose.rungs import control
from weft.diagnose.rungs.compared import READERS, at_first_step, strength, training
from weft.diagnose.rungs.outset import Modules, dropouts, starts, trainable
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.words import counted
from weft.runs.evidence import AdapterModule, Happened, Snapshot

RUNG = 4

TAKEN = {"unload": "unloaded it", "disable": "disabled it", "delete": "deleted it"}
"""What takes an adapter away again."""


def look(pair: Pair) -> Looked:
    """Presence, rank, start, dropout and trainable parameters of both adapters."""
    if pair.a.kind == "config":  # it says so itself
        return Looked()
    of_a, of_b = adapter(pair.a), adapter(pair.b)
    if of_a is None and of_b is None:
        return _without(pair)
    ops = operators(pair)
    findings = [*_presence(pair, of_a, of_b, ops)]
    equal: list[str] = []
    both: Modules = {}
    if of_a is not None and of_b is not None:
        both = {
            op.name: (x, y)
            for op in ops
            if (x := of_a.modules.get(op.name)) and (y := _named(of_b, of_a, op.name))
        }
        findings += [*_ranks(pair, of_a, of_b, ops, both)]
        findings += [*starts(pair, of_a, of_b, both), *dropouts(pair, both)]
        if both and not findings:
            equal.append(_alike(both))
    findings += [*trainable(pair, of_a, of_b, both)]
    return Looked(tuple(at_first_step(pair, findings)), tuple(equal))


def _without(pair: Pair) -> Looked:
    """Neither side used an adapter; one may have loaded one."""
    loaded = {letter: _unused(side) for letter, side in pair.sides}
    if any(loaded.values()):
        words = "; ".join(f"{letter} {said}" for letter, said in loaded.items() if said)
        return Looked(unseen=(f"adapters: no pass used one on either side ({words})",))
    return (
        Looked(equal=("no adapter on either side",))
        if pair.a.passes and pair.b.passes
        else (Looked(unseen=("adapters: none was seen on either side",)))
    )


def _unused(side: Evidence) -> str | None:
    """What was done with an adapter that no pass used; the last thing that took it away first."""
    taken = [each for each in side.happened if each.what in TAKEN]
    if taken:
        return f"{TAKEN[taken[-1].what]}{_at(taken[-1])}"
    for what, words in (("load", "loaded"), ("save", "saved")):
        for each in side.happened:
            if each.what == what and each.facts.get("by") in READERS:
                count = each.facts.get("modules")
                many = f" of {counted(count, 'module')}" if count else ""
                return f"{words} an adapter{many}{_at(each)}{_keys(each)}"
    return None


def _at(event: Happened) -> str:
    place = event.place if event.what in ("load", "save") else ""
    told = [each for each in (place, event.where) if each]
    return f" ({', '.join(told)})" if told else ""


def _keys(event: Happened) -> str:
    """Keys of a file that found no place, and places that found no key."""
    said = [
        f"{event.facts[what]} keys {words}"
        for what, words in (("unexpected", "of the file had no place"), ("missing", "were missing"))
        if event.facts.get(what)
    ]
    return f", {' and '.join(said)}" if said else ""


def _lost_keys(side: Evidence) -> str:
    """What loading left out, in words."""
    loads = [each for each in side.happened if each.what == "load"]
    return next((_keys(each) for each in loads if _keys(each)), "")


def _named(of_b: Snapshot, of_a: Snapshot, name: str) -> AdapterModule | None:
    partner = dict(modules(of_a, of_b).pairs).get(name)
    return None if partner is None else of_b.modules[partner]


def _presence(
    pair: Pair, of_a: Snapshot | None, of_b: Snapshot | None, ops: Sequence[Operator]
) -> Iterator[Finding]:
    """Modules that only one side adapts, and those where one side's adapter does nothing."""
    every = [op.name for op in ops]
    if of_a is None or of_b is None:
        yield from _one_sided(pair, "A" if of_b is None else "B", ops)
        return
    for letter, other, missing in (("A", "B", _missing(ops, "B")), ("B", "A", _missing(ops, "A"))):
        if not missing:
            continue
        hurt = [op for op in missing if not _alike_in_effect(op)]
        if not hurt:
            yield _merged_there(missing, letter, other, every)
            continue
        names = [op.name for op in hurt]
        side = of_b if other == "B" else of_a
        yield Finding(
            RUNG,
            "factor",
            "attach-partial" if len(names) < len(every) else "attach",
            group(names, every),
            f"{letter} has an adapter at {counted(len(names), 'module')} where {other} has none: "
            f"{group(names, every)}{_asked(of_a, of_b)}"
            f"{_lost_keys(pair.b if other == 'B' else pair.a)}",
            value=float(len(names)),
            other=float(len(every)),
            unit="modules",
            where=side.where,
            fix=f"compare the names of targets, and the keys of the adapter file, in {other}",
            swap=Swap("attach", tuple(names)),
        )
    if not training(pair):
        yield from _idle(pair, ops)
        yield from _turned_off(pair)
        yield from control.findings(pair)


def _missing(ops: Sequence[Operator], letter: str) -> list[Operator]:
    return [op for op in ops if (op.a if letter == "A" else op.b) is None]


def _asked(of_a: Snapshot, of_b: Snapshot) -> str:
    """Whether the targets that were asked for differ."""
    asked = [_targets(each.declared) for each in (of_a, of_b)]
    if None in asked:
        return ""
    if asked[0] == asked[1]:
        return "; both ask for the same targets"
    return f"; A asks for {asked[0]}, B for {asked[1]}"


def _targets(declared: Mapping[str, object]) -> str | None:
    value = declared.get("target_modules") or declared.get("targets")
    if value is None:
        return None
    return (
        ", ".join(sorted(map(str, value))) if isinstance(value, (list, tuple, set)) else f"{value}"
    )


def _one_sided(pair: Pair, letter: str, ops: Sequence[Operator]) -> Iterator[Finding]:
    """Only one side has an adapter: is its update in the other's weights?"""
    other = "B" if letter == "A" else "A"
    every = [op.name for op in ops]
    hurt = [op for op in ops if not _alike_in_effect(op) and strength(_of(op, letter)) > 0]
    if not hurt:
        if all(op.equal for op in ops):
            yield _merged_there(ops, letter, other, every)
        return
    merged = [op for op in hurt if strength(_of(op, other)) > 0]
    if len(merged) == len(hurt):
        return  # in the weights, at another strength: rung 5 says so
    names = [op.name for op in hurt]
    side = pair.b if other == "B" else pair.a
    unused = _unused(side)
    yield Finding(
        RUNG,
        "factor",
        "attach" if len(hurt) == len(ops) else "attach-partial",
        group(names, every),
        f"{letter} runs with an adapter at {group(every, every)}, {other} without: "
        + (f"it {unused}, and no pass uses it" if unused else "its base weights alone"),
        value=float(len(names)),
        other=float(len(every)),
        unit="modules",
        where=_where_unused(side),
        fix=f"attach the adapter in {other} before it is used",
        swap=Swap("attach", tuple(names) if len(hurt) < len(ops) else ()),
    )


def _alike_in_effect(op: Operator) -> bool:
    """Whether both compute the same, or would if a merge had not been rounded (rung 3)."""
    return op.equal is True or op.rounded_away


def _of(op: Operator, letter: str) -> Applied | None:
    return op.a if letter == "A" else op.b


def _where_unused(side: Evidence) -> str | None:
    told = (*TAKEN, "load", "save")
    seen = [each.where for each in side.happened if each.what in told and each.where]
    return seen[-1] if seen else next((each.where for each in side.weights if each.where), None)


def _merged_there(
    ops: Sequence[Operator], letter: str, other: str, every: Sequence[str]
) -> Finding:
    place = group([op.name for op in ops], every)
    return Finding(
        RUNG,
        "harmless",
        "attach",
        place,
        f"{letter} has an adapter at {place} and {other} has none there: its update is in "
        f"{other}'s weights, so both compute the same",
    )


def _idle(pair: Pair, ops: Sequence[Operator]) -> Iterator[Finding]:
    """Modules at which one side's update does nothing; all of them is for rung 5."""
    both = [op for op in ops if op.a and op.b and (strength(op.a) or strength(op.b))]
    every = [op.name for op in both]
    for letter, other in (("A", "B"), ("B", "A")):
        idle = [op for op in both if not strength(_of(op, letter)) and not _alike_in_effect(op)]
        if not idle or len(idle) == len(both):
            continue
        names = [op.name for op in idle]
        zero = all(each is not None and not each.norm for each in (_of(op, letter) for op in idle))
        why = "the weights were never read or never trained" if zero else "inactive, or scaled by 0"
        side = pair.a if letter == "A" else pair.b
        of = adapter(side)
        yield Finding(
            RUNG,
            "factor",
            "attach-partial",
            group(names, every),
            f"the update is zero in {letter} at {group(names, every)}, and "
            f"is not in {other}: {why}{_lost_keys(side)}",
            value=float(len(names)),
            other=float(len(every)),
            unit="modules",
            where=None if of is None else of.where,
            fix=f"compare the keys of the adapter file with the names of modules in {letter}",
            swap=Swap("adapter", tuple(names)),
        )


def _turned_off(pair: Pair) -> Iterator[Finding]:
    """An adapter that acts at first and no more in later passes, on one side only."""
    off = {letter: _off_later(side) for letter, side in pair.sides}
    for (letter, side), other in zip(pair.sides, "BA", strict=True):
        later = off[letter]
        if later is None or off[other] is not None:
            continue
        names = [name for name, module in later.modules.items() if not _acts(module)]
        taken = next((each for each in side.happened if each.what in TAKEN), None)
        place = group(names, list(later.modules))
        yield Finding(
            RUNG,
            "factor",
            "attach" if len(names) == len(later.modules) else "attach-partial",
            place,
            f"the adapter acts in the first passes of {letter} and then no more, at {place}"
            + (f": the script {TAKEN[taken.what]}{_at(taken)}" if taken is not None else "")
            + f"; in {other} it stays",
            value=float(len(names)),
            other=float(len(later.modules)),
            unit="modules",
            where=(taken.where if taken is not None else None) or later.where,
            fix=f"leave the adapter active in {letter} as long as it is used",
            swap=Swap("attach", tuple(names) if len(names) < len(later.modules) else ()),
        )


def _off_later(side: Evidence) -> Snapshot | None:
    """The first later use in which modules that acted do nothing; their update may be merged."""
    used = [each for each in side.snapshots if each.when == "use"]
    first = adapter(side)
    if first is None or first not in used:
        return None
    on = {name for name, module in first.modules.items() if _acts(module)}
    for each in used[used.index(first) + 1 :]:
        if any(not _acts(module) for name, module in each.modules.items() if name in on):
            return each
    return None


def _acts(module: AdapterModule) -> bool:
    return module.merged or (module.norm_b > 0 and path_scale(module) != 0)


def _ranks(
    pair: Pair, of_a: Snapshot, of_b: Snapshot, ops: Sequence[Operator], both: Modules
) -> Iterator[Finding]:
    """Ranks of the factors, and those that their products really have."""
    by_name = {op.name: op for op in ops}
    differ = {
        name: (x.rank, y.rank)
        for name, (x, y) in both.items()
        if x.rank != y.rank and by_name[name].equal is not True
    }
    words = "the rank is {0} in A and {1} in B at {2}"
    if not differ and not training(pair):
        products = {name: _effective(by_name[name]) for name in both}
        differ = {name: two for name, two in products.items() if two and two[0] != two[1]}
        words = "the update has rank {0} in A and {1} in B at {2}, from factors of one shape"
    if not differ:
        return
    names = list(differ)
    a, b = (sorted({ranks[i] for ranks in differ.values()}) for i in (0, 1))
    place = group(names, list(both))
    said = words.format(_numbers(a), _numbers(b), place)
    for letter, of, given in (("A", of_a, a), ("B", of_b, b)):
        asked = _asked_rank(pair.a if letter == "A" else pair.b, of)
        if asked is not None and given != [asked]:
            said += f"; {letter} was asked for {asked}"
    yield Finding(
        RUNG,
        "factor",
        "rank",
        place,
        said,
        value=float(b[0]),
        other=float(a[0]),
        unit="rank",
        where=of_b.where,
        fix="give both the same rank, and look where it is overwritten",
        swap=Swap("adapter", tuple(names) if len(names) < len(both) else ()),
    )


def _effective(op: Operator) -> tuple[int, int] | None:
    if op.a is None or op.b is None or op.a.update is None or op.b.update is None:
        return None
    if not op.a.norm or not op.b.norm or op.same_factors:
        return None
    return rank_of_product(op.a.update), rank_of_product(op.b.update)


def _asked_rank(side: Evidence, of: Snapshot) -> int | None:
    setting = side.settings.get("adapter.rank")
    for value in (of.declared.get("r"), of.declared.get("rank"), setting and setting.value):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _numbers(values: Sequence[int]) -> str:
    return " or ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")


def _alike(both: Modules) -> str:
    ranks = sorted({x.rank for x, _ in both.values()})
    return f"adapters at the same {counted(len(both), 'module')}, rank {_numbers(ranks)}"
