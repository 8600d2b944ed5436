"""Rung 3: base weights, tensor by tensor, besides what adapters explain.

A base that contains an update is no other base: rungs 4 and 5 count what is merged with what is
added. What is left here is another revision, another dtype, broken or made tying, and updates that
were lost to rounding when they were merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from weft.diagnose.compare.align import first_weights, models
from weft.diagnose.compare.folded import other_dtypes
from weft.diagnose.compare.operators import ROUNDING, Operator, operators
from weft.diagnose.compare.places import group, kind_of
from weft.diagnose.finding import Finding, Looked, Swap
from weft.diagnose.sides.evidence import Pair
from weft.diagnose.words import counted
from weft.runs.evidence import TensorSeen, Weights

RUNG = 3

COSMETIC = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache",
     "architectures", "pad_token_id", "bos_token_id", "eos_token_id", "_attn_implementation",
     "attn_implementation", "output_attentions", "output_hidden_states", "return_dict",
     "tie_word_embeddings", "_commit_hash", "quantization_config"}
)  # fmt: skip
"""Keys of a model's configuration that do not say what its modules compute."""

SUBNORMAL = 2.0**-25
"""Rounding of float16 below its smallest normal number, absolute."""

HEADS = ("lm_head", "embed_tokens", "embed_out", "wte", "embed_in", "word_embeddings", "output")


def look(pair: Pair) -> Looked:
    """Digests, dtypes, tying and configuration of matched models."""
    if pair.a.kind in ("adapter", "config"):  # they say so themselves
        return Looked()
    found = models(pair)
    a, b = first_weights(pair.a), first_weights(pair.b)
    if not found.pairs:
        return Looked(unseen=("base weights: no model was seen on both sides",))
    findings: list[Finding] = []
    equal: list[str] = []
    for key_a, key_b in found.pairs:
        one, other = a[key_a], b[key_b]
        name = "" if len(found.pairs) == 1 else f" of {one.name or key_a}"
        made = [*_model(pair, one, other, name)]
        findings += made
        if not any(each.nature == "factor" for each in made) and one.tensors and other.tensors:
            same = sum(
                seen.digest == other.tensors[key].digest
                for key, seen in one.tensors.items()
                if key in other.tensors
            )
            equal.append(
                f"base weights{name} equal: {same} of {counted(len(one.tensors), 'tensor')}"
            )
    findings += _lost_in_merge(pair)
    unseen = tuple(
        f"base weights of {where[key].name or key}: only {letter} has this model"
        for letter, keys, where in (("A", found.only_a, a), ("B", found.only_b, b))
        for key in keys
    )
    return Looked(tuple(findings), tuple(equal), unseen)


def _model(pair: Pair, a: Weights, b: Weights, name: str) -> Iterator[Finding]:
    yield from _configuration(a, b, name)
    if a.attention and b.attention and a.attention != b.attention:
        yield Finding(
            RUNG,
            "harmless",
            "implementation",
            "attention",
            f"attention is computed by {a.attention} in A and {b.attention} in B: the same "
            "function, rounded differently",
        )
    if not a.tensors or not b.tensors:
        return
    only = [sorted(x.tensors.keys() - y.tensors.keys()) for x, y in ((a, b), (b, a))]
    tied = [_tied_names(each) for each in (a, b)]
    only = [[key for key in keys if key not in tied[0] | tied[1]] for keys in only]
    shapes = [
        key
        for key, seen in a.tensors.items()
        if key in b.tensors and seen.shape != b.tensors[key].shape
    ]
    if any(only) or shapes:
        yield _other_model(a, b, only, shapes, name)
        return
    dtypes = {
        key
        for key, seen in a.tensors.items()
        if key in b.tensors and seen.dtype != b.tensors[key].dtype
    }
    ops = {op.name: op for op in operators(pair)}
    rounding = {key for key in dtypes if _rounding_only(a, b, key, pair)}
    if rounding:
        yield _precision(a, b, sorted(rounding))
    differ = [
        key
        for key, seen in a.tensors.items()
        if key in b.tensors
        and seen.digest != b.tensors[key].digest
        and key not in rounding
        and not _explained(ops.get(key.removesuffix(".weight")))
    ]
    if a.tied != b.tied:
        heads = [key for key in differ if key in tied[0] ^ tied[1] or _is_head(key)]
        if heads:
            yield _tying(a, b, heads)
            differ = [key for key in differ if key not in heads]
        elif not differ:
            yield Finding(
                RUNG,
                "harmless",
                "tied",
                "lm_head",
                "embedding and head share their tensor on one side only, with equal values",
            )
    if differ:
        yield _rounded_merge(pair, a, b, differ) or _other_base(pair, a, b, differ, name)


def _configuration(a: Weights, b: Weights, name: str) -> Iterator[Finding]:
    keys = [
        key
        for key in sorted(a.config.keys() & b.config.keys())
        if key not in COSMETIC and a.config[key] != b.config[key]
    ]
    if keys and a.architecture == b.architecture:
        said = ", ".join(f"{key} is {a.config[key]} in A and {b.config[key]} in B" for key in keys)
        yield Finding(
            RUNG,
            "factor",
            "implementation",
            keys[0] if len(keys) == 1 else ", ".join(keys[:4]),
            f"the configuration of the base{name} differs: {said}",
            value=float(len(keys)),
            unit="keys",
            where=b.where,
            swap=Swap("base"),
        )


def _tied_names(weights: Weights) -> set[str]:
    return {name for names in weights.tied for name in names}


def _is_head(key: str) -> bool:
    return any(part in HEADS for part in key.split("."))


def _explained(op: Operator | None) -> bool:
    return (
        op is not None
        and (op.same_base is True or op.rounded_away)
        and (op.merged or op.rounded_away)
    )


def _relative(pair: Pair, a: Weights, b: Weights, key: str) -> tuple[float, bool]:
    """How far apart a tensor is, to its norm, and whether that is more than a lower bound."""
    module = key.removesuffix(".weight")
    if module in a.sketches and module in b.sketches:
        one, other = pair.a.array(a.sketches[module]), pair.b.array(b.sketches[module])
        if one.shape == other.shape:
            apart = float(np.linalg.norm(other.astype(np.float64) - one))
            return apart / max(float(np.linalg.norm(one)), 1e-30), True
    one_norm, other_norm = a.tensors[key].norm, b.tensors[key].norm
    return abs(other_norm - one_norm) / max(abs(one_norm), 1e-30), False


def _rounding_only(a: Weights, b: Weights, key: str, pair: Pair) -> bool:
    """Whether a tensor differs by no more than its dtypes explain."""
    coarse = max(_unit(a.tensors[key]), _unit(b.tensors[key]))
    return _relative(pair, a, b, key)[0] <= 4 * coarse


def _unit(seen: TensorSeen) -> float:
    """Relative rounding of its numbers; small ones in float16 have fewer digits."""
    dtype = seen.dtype.removeprefix("torch.")
    usual = ROUNDING.get(dtype, 0.0)
    if dtype != "float16" or not seen.norm:
        return usual
    typical = seen.norm / np.sqrt(max(int(np.prod(seen.shape)), 1))
    return max(usual, SUBNORMAL / typical)


def _precision(a: Weights, b: Weights, keys: Sequence[str]) -> Finding:
    one, other = (
        sorted({w.tensors[key].dtype.removeprefix("torch.") for key in keys}) for w in (a, b)
    )
    return Finding(
        RUNG,
        "factor",
        "precision",
        "base weights" if len(keys) == len(a.tensors) else group(keys, a.tensors, "tensors"),
        f"the base weights are {' and '.join(one)} in A and {' and '.join(other)} in B, and "
        "differ by no more than that rounding",
        value=float(len(keys)),
        other=float(len(a.tensors)),
        unit="tensors",
        where=b.where,
        fix="load both in the same dtype",
        swap=Swap("dtype"),
    )


def _tying(a: Weights, b: Weights, keys: Sequence[str]) -> Finding:
    tied = "A" if len(_tied_names(a)) > len(_tied_names(b)) else "B"
    other = "B" if tied == "A" else "A"
    return Finding(
        RUNG,
        "factor",
        "tied",
        keys[0] if len(keys) == 1 else " and ".join(keys),
        f"embedding and head are one tensor in {tied} and two in {other}, and {' and '.join(keys)} "
        "differs: one of them was loaded or overwritten by itself",
        value=float(len(keys)),
        unit="tensors",
        where=b.where,
        fix=f"tie the weights again in {other} after loading, or save and load both tensors",
        swap=Swap("tied", tuple(keys)),
    )


def _other_model(
    a: Weights, b: Weights, only: Sequence[Sequence[str]], shapes: Sequence[str], name: str
) -> Finding:
    said = [
        f"{letter} has {counted(len(keys), 'tensor')} that the other has not ({keys[0]})"
        for letter, keys in zip("AB", only, strict=True)
        if keys
    ]
    if shapes:
        key = shapes[0]
        said.append(
            f"{len(shapes)} have other shapes ({key}: {list(a.tensors[key].shape)} in A, "
            f"{list(b.tensors[key].shape)} in B)"
        )
    return Finding(
        RUNG,
        "factor",
        "base",
        "base weights",
        f"the bases{name} are different models ({_named(a)} in A, {_named(b)} in B): "
        + "; ".join(said),
        where=b.where,
        fix="load the same base in both",
        swap=Swap("base"),
    )


def _named(weights: Weights) -> str:
    return weights.load or weights.name or weights.architecture or weights.model


def _other_base(pair: Pair, a: Weights, b: Weights, differ: Sequence[str], name: str) -> Finding:
    sizes = {key: _relative(pair, a, b, key) for key in differ}
    measured = [size for size, whole in sizes.values() if whole]
    middle = float(np.median(measured or [size for size, _ in sizes.values()]))
    much = f"by {middle:.2g} of their norm" if measured else f"norms by {middle:.2g}"
    place = "base weights" if len(differ) == len(a.tensors) else _where(differ, a.tensors)
    came = f": {_named(a)} in A, {_named(b)} in B" if _named(a) != _named(b) else ""
    head = len(differ) == 1 and _is_head(differ[0])
    tie = bool(a.config.get("tie_word_embeddings") or b.config.get("tie_word_embeddings"))
    return Finding(
        RUNG,
        "factor",
        "tied" if head and tie else "base",
        place,
        f"{len(differ)} of {len(a.tensors)} tensors of the base{name} differ ({place}, {much}), "
        f"and no adapter explains it{came}",
        value=middle,
        floor=None,
        unit="relative" if measured else "relative difference of norms",
        where=b.where,
        fix="load the same revision of the base in both, and quantise or merge it alike",
        swap=Swap("base", () if len(differ) == len(a.tensors) else tuple(differ)),
    )


def _rounded_merge(pair: Pair, a: Weights, b: Weights, differ: Sequence[str]) -> Finding | None:
    """Bases that differ by what rounding left of a merge that both sides made."""
    merges = other_dtypes(pair)
    if merges is None:
        return None
    coarse = max(ROUNDING.get(each.dtype, 0.0) for each in merges)
    sizes = {key: _relative(pair, a, b, key)[0] for key in differ}
    if max(sizes.values()) > 4 * coarse:
        return None
    one, other = (each.dtype for each in merges)
    return Finding(
        RUNG,
        "factor",
        "merge-precision",
        _where(differ, a.tensors),
        f"the adapter was merged into {one} weights in A and into {other} weights in B; they "
        f"differ by no more than that rounding (in {counted(len(differ), 'tensor')}, by "
        f"{float(np.median(list(sizes.values()))):.2g} of their norm)",
        value=float(np.median(list(sizes.values()))),
        unit="relative",
        where=merges[1].where,
        fix="merge in float32, or leave the adapter beside the base",
        swap=Swap("base", () if len(differ) == len(a.tensors) else tuple(differ)),
    )


def _where(names: Sequence[str], among: Mapping[str, TensorSeen]) -> str:
    if len(names) == 1:
        return names[0].removesuffix(".weight")
    short = [name.removesuffix(".weight") for name in names]
    kinds = {kind_of(name) for name in short}
    if len(kinds) == 1:
        return f"{len(names)} x {next(iter(kinds))}"
    return group(short, [name.removesuffix(".weight") for name in among], "tensors")


def _lost_in_merge(pair: Pair) -> Iterator[Finding]:
    """Updates that were merged into weights too coarse for them."""
    ops = operators(pair)
    lost = [op for op in ops if op.rounded_away]
    if not lost:
        return
    names = [op.name for op in lost]
    share = float(np.median([op.share or 0.0 for op in lost]))
    in_b = any("B" in op.merged_in or (op.b is not None and op.b.merged) for op in lost)
    letter = "B" if in_b else "A"
    weights = first_weights(pair.b if letter == "B" else pair.a)
    dtype = next((each.dtype.removeprefix("torch.") for each in weights.values()), "")
    place = group(names, [op.name for op in ops])
    yield Finding(
        RUNG,
        "factor",
        "merge-precision",
        place,
        f"{letter} merged the update into {dtype or '16-bit'} weights, which are too coarse for "
        f"it: {share:.0%} of it is lost to rounding at {place}",
        value=share,
        unit="share of the update",
        where=next((each.where for each in weights.values()), None),
        fix="merge in float32, or leave the adapter beside the base",
        swap=Swap("base", tuple(names)),
    )
