"""Rung 7: the next-token distributions of the same prompts, and the nats of given tokens.

Raw logits are only compared after log-softmax: a constant added to all of them is no difference.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from weft.diagnose.compare import noise
from weft.diagnose.compare.align import Row
from weft.diagnose.compare.divergence import Divergence, divergence, perplexity
from weft.diagnose.compare.moments import Together, arrays_of, together
from weft.diagnose.finding import Finding, Looked, Outcome
from weft.diagnose.labels import Label
from weft.diagnose.sides.evidence import Pair
from weft.diagnose.words import counted

RUNG = 7

PREFILL = tuple(range(8))
TRAINED = (*PREFILL, 10, 11)
"""Rungs whose factors can have moved a distribution: before training, and after it."""

Rows = Sequence[tuple[Row, Row]]
Read = list[tuple[Row, Row, np.ndarray, np.ndarray]]
"""Rows of both sides, with the logits [V] of each."""


def look(pair: Pair) -> Looked:
    """Compare log-softmax at the last real position of each prompt, and nll where given."""
    parts = [_part(pair, part) for part in together(pair) if part.rows]
    if not parts:
        return Looked(unseen=("logits: no prompt was read by both sides without gradients",))
    return Looked(
        findings=tuple(each for part in parts for each in part.findings),
        equal=tuple(each for part in parts for each in part.equal),
        unseen=tuple(each for part in parts for each in part.unseen),
        outcome=tuple(each for part in parts for each in part.outcome),
        curves={key: curve for part in parts for key, curve in part.curves.items()},
    )


def _part(pair: Pair, part: Together) -> Looked:
    when = " after training" if part.trained else ""
    suffix = " trained" if part.trained else ""
    rungs = TRAINED if part.trained else PREFILL
    read, unlike = _of_one_width(arrays_of(part.rows, lambda row: row.logits))
    with_logits = [(a, b) for a, b, _, _ in read]
    nll = _nll(pair, part, when, suffix, rungs)
    if not with_logits:
        unseen = unlike or (f"logits{when}: not recorded for a prompt of both sides",)
        return Looked(outcome=nll, unseen=() if nll and not unlike else unseen)
    apart = divergence(np.array([x_V for *_, x_V, _ in read]), np.array([y_V for *_, y_V in read]))
    limit = noise.floor(pair, "nats", part.trained)
    outcome = [*_finite(read, when, suffix, rungs), *nll]
    if not apart.finite.any():
        return Looked(outcome=tuple(outcome), unseen=(f"logits{when}: none are finite",))
    kl_N = apart.kl[apart.finite]
    mean = float(kl_N.mean())
    other = sum(a.key != b.key for a, b in with_logits)
    of_others = f", {other} of other ids" if other else ""
    outcome += [
        Outcome(
            f"kl{suffix}",
            mean,
            limit.value,
            "nats",
            f"mean KL of next tokens{when} over {counted(len(kl_N), 'prompt')}{of_others}: "
            f"{mean:.2g} nats (floor {limit.value:.1g}, "
            f"{limit.source}; JS {apart.js[apart.finite].mean():.2g})",
            prompts=int((kl_N > 3 * limit.value).sum()),
            of=len(kl_N),
            rungs=rungs,
        ),
        _top1(pair, apart, when, suffix, rungs),
    ]
    within = f"mean KL {mean:.1e} nats, floor {limit.value:.1e}"
    equal = (
        (
            f"next-token distributions{when} equal within noise: {counted(len(kl_N), 'prompt')} "
            f"({within})",
        )
        if mean <= limit.value
        else ()
    )
    findings = [
        *_shifted(pair, apart, limit.value),
        *_padded(with_logits, apart, limit.value, when),
        *_effect(apart, with_logits, limit.value, when),
    ]
    curve = {
        "kl": apart.kl.tolist(),
        "floor": limit.value,
        "prompt": list(range(1, len(apart.kl) + 1)),
    }
    return Looked(tuple(findings), equal, unlike, tuple(outcome), {f"prompts{suffix}": curve})


def _of_one_width(read: Read) -> tuple[Read, tuple[str, ...]]:
    """Rows of the vocabulary that most of them have, and what is said of the others."""
    if not read:
        return [], ()
    width = Counter(len(x_V) for *_, x_V, _ in read).most_common(1)[0][0]
    kept = [each for each in read if len(each[2]) == width]
    left = counted(len(read) - len(kept), "prompt")
    said = f"logits of {left} whose vocabulary is not one of {width} tokens, as others have"
    return kept, (said,) * (len(kept) < len(read))


def _effect(apart: Divergence, rows: Rows, floor: float, when: str) -> tuple[Finding, ...]:
    """That distributions differ, where hidden states may say nothing."""
    over = [int(n) for n in np.flatnonzero(apart.finite & (apart.kl > 3 * floor))]
    same = [n for n in over if rows[n][0].key == rows[n][1].key]
    if not over:
        return ()
    hidden_equal = bool(same) and all(_equal_hidden(*rows[n]) for n in same)
    mean = float(apart.kl[apart.finite].mean())
    words = (
        f"next-token distributions{when} differ in {len(over)} of {counted(len(rows), 'prompt')}"
    )
    why = ", while the last hidden states are equal: the output layer" if hidden_equal else ""
    return (
        Finding(
            RUNG,
            "effect",
            "tied" if hidden_equal else "unknown",
            "lm_head" if hidden_equal else f"prompt {over[0] + 1}",
            f"{words} (mean KL {mean:.2g} nats){why}",
            value=mean,
            floor=floor,
            unit="nats",
        ),
    )


def _equal_hidden(a: Row, b: Row) -> bool:
    """Whether both sides put the very same vector into the output layer."""
    if a.hidden is None or b.hidden is None or a.hidden.shape != b.hidden.shape:
        return False
    return bool(np.array_equal(a.hidden[-1], b.hidden[-1]))


def _top1(pair: Pair, apart: Divergence, when: str, suffix: str, rungs: tuple[int, ...]) -> Outcome:
    """Agreement of first tokens; a flip at a margin that noise can close is no difference."""
    kept = apart.finite
    flips = kept & ~apart.agrees
    slack = 2 * noise.logit_floor(pair).value
    beyond = flips & (apart.margin > slack)
    share = float(beyond.sum() / kept.sum())
    by_noise = int(flips.sum() - beyond.sum())
    of_noise = f"; {by_noise} flips are at margins below {slack:.1g}" if by_noise else ""
    return Outcome(
        f"top1{suffix}",
        share,
        0.0,
        "share",
        f"most likely next token{when} agrees in {int(apart.agrees[kept].sum())} of "
        f"{counted(int(kept.sum()), 'prompt')}{of_noise}",
        prompts=int(beyond.sum()),
        of=int(kept.sum()),
        rungs=rungs,
    )


def _finite(
    read: Sequence[tuple[Row, Row, np.ndarray, np.ndarray]],
    when: str,
    suffix: str,
    rungs: tuple[int, ...],
) -> tuple[Outcome, ...]:
    """How many prompts are not finite on one side only; -inf is a mask, not an overflow."""
    bad = [tuple(_broken(logits_V) for logits_V in two) for _, _, *two in read]
    one = sum(a != b for a, b in bad)
    if not one:
        return ()
    side = "B" if any(b for _, b in bad) else "A"
    words = f"logits{when} are not finite in {one} of {counted(len(bad), 'prompt')}, in {side} only"
    share = one / len(bad)
    return (Outcome(f"finite{suffix}", share, 0.0, "share", words, one, len(bad), rungs),)


def _broken(logits_V: np.ndarray) -> bool:
    open_V = logits_V[~np.isneginf(logits_V)]
    return not len(open_V) or not bool(np.isfinite(open_V).all())


def _nll(
    pair: Pair, part: Together, when: str, suffix: str, rungs: tuple[int, ...]
) -> tuple[Outcome, ...]:
    """The loss of the prompts themselves, where each token's nats were recorded."""
    finite = [
        (x, y)
        for _, _, x, y in arrays_of(part.same, lambda row: row.nll)
        if x.size and np.isfinite(x).all() and np.isfinite(y).all()
    ]
    if not finite:
        return ()
    limit = noise.floor(pair, "loss").value
    a, b = (np.concatenate(list(side)) for side in zip(*finite, strict=True))
    gaps_N = [abs(y.mean() - x.mean()) / max(abs(x.mean()), 1e-12) for x, y in finite]
    gap = abs(float(b.mean() - a.mean())) / max(abs(float(a.mean())), 1e-12)
    words = (
        f"loss of given tokens{when}: {a.mean():.4f} and {b.mean():.4f} nats, perplexity "
        f"{perplexity(a):.3f} and {perplexity(b):.3f}, over {counted(a.size, 'token')}"
    )
    over = sum(bool(each > 3 * limit) for each in gaps_N)
    return (Outcome(f"nll{suffix}", gap, limit, "relative", words, over, len(finite), rungs),)


def _shifted(pair: Pair, apart: Divergence, floor: float) -> tuple[Finding, ...]:
    """Raw logits that differ by a constant alone."""
    kept = apart.finite
    shift = float(np.abs(apart.shift[kept]).max())
    if shift <= 2 * noise.logit_floor(pair).value or apart.kl[kept].max() > floor:
        return ()
    words = f"raw logits differ by a constant (up to {shift:.3g}), which no probability sees"
    return (Finding(RUNG, "harmless", "implementation", "lm_head", words, value=shift),)


def _padded(rows: Rows, apart: Divergence, floor: float, when: str) -> tuple[Finding, ...]:
    """The signature of padding that is read: the longest row is right, the error grows with pads.

    Where masks or positions were recorded and are wrong, they are the cause and this its effect.
    """
    found = []
    for letter, at in (("A", 0), ("B", 1)):
        own = [
            (two[at], float(kl))
            for two, kl in zip(rows, apart.kl, strict=True)
            if two[0].key == two[1].key and np.isfinite(kl)
        ]
        pads_N = np.array([row.padding for row, _ in own])
        kl_N = np.array([kl for _, kl in own])
        if not len(own) or pads_N.min() > 0 or len(set(pads_N)) < 2:
            continue
        right, wrong = kl_N[pads_N == 0], kl_N[pads_N > 0]
        if right.max() > floor or np.median(wrong) <= 3 * floor:
            continue
        rank = float(np.corrcoef(pads_N, kl_N)[0, 1])
        if rank <= 0:
            continue
        facts = [fact for row, _ in own for fact in _wrong(row)]
        label: Label = facts[0] if facts else "mask"
        words = (
            f"in {letter}{when}, {counted(len(right), 'row')} without padding are right and "
            f"{len(wrong)} padded ones are not (mean KL {wrong.mean():.2g} nats, correlation with "
            f"the number of pads {rank:.2f}): padding is attended, or positions count it"
        )
        found.append(
            Finding(
                RUNG,
                "effect" if facts else "factor",
                label,
                f"{counted(len(wrong), 'padded row')}",
                words,
                value=float(wrong.mean()),
                floor=floor,
                unit="nats",
            )
        )
    return tuple(found)


def _wrong(row: Row) -> tuple[Label, ...]:
    """What is known to be wrong of a padded row: its mask, or its positions."""
    labels: list[Label] = []
    if row.attended_padding:
        labels.append("mask")
    if row.start and row.positions is not None and row.positions[0] != 0:
        labels.append("positions")
    return tuple(labels)
