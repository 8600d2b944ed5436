"""The configuration block: what a run really uses, in a few lines for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from weft.data.split import Split
from weft.engines.config import RayConfig
from weft.methods.trigger import adapted_layers, refuse_layers
from weft.model.adapter import Layout
from weft.training.config import RunConfig
from weft.training.plan import rows_of_step, steps_of, total_steps, trigger_of
from weft.training.resolve import FORCED_RANK, Resolved

if TYPE_CHECKING:
    from weft.methods.calibrate import Noise
    from weft.model.magnitude import Magnitudes


def configuration_block(
    resolved: Resolved, layout: Layout, splits: dict[str, Split]
) -> dict[str, str]:
    """Label to value, as printed at the start of a run and stored in its manifest.

    Raises `InputError` where boosting asks for more layers than the layout has.
    """
    config = resolved.config
    optimiser, rows = config.optimiser, len(splits["train"].items)
    steps = total_steps(config, rows)
    leaves = sorted({slot.site.name.rsplit(".", 1)[-1] for slot in layout.slots})
    lanes = config.lanes
    warmup = f", warm-up {optimiser.warmup_ratio:.0%}" if optimiser.warmup_ratio else ""
    block = {
        "base": f"{config.base} ({config.dtype}, {config.device})",
        "data": _data(config, splits),
        "objective": _objective(config),
        "engine": _engine(config),
        "method": config.method.describe(),
        "adapter": _adapter(resolved),
        "start": config.start or "",
        "boosting": _boosting(config, layout, rows, steps),
        "sites": f"{len(layout.slots)}: {', '.join(leaves)} in {_spans(adapted_layers(layout))}",
        "parameters": f"{layout.size:,}" + (f" x {len(lanes)}" if len(lanes) > 1 else ""),
        "optimiser": f"{optimiser.name}, lr {', '.join(f'{lr:g}' for lr in optimiser.lrs)}, "
        f"{optimiser.schedule}{warmup}"
        + (f", clipped to norm {optimiser.clip:g}" if optimiser.clip else ""),
        "length": f"{steps:,} steps of {rows_of_step(config, rows):,} rows"
        + (f" ({config.micro_batch_size} a forward)" if config.micro_batch_size else "")
        + f" = {_epochs(steps / steps_of(config, rows))} epochs, "
        + _work(config, steps, rows_of_step(config, rows)),
        "seed": ", ".join(str(seed) for seed in config.seeds or (config.seed,)),
        "keeps": f"the {config.keep} adapter"
        + (f", evaluated every {config.eval.every} steps" if config.eval.every else ""),
    }
    if config.base_dropout:
        block["base dropout"] = "on"
    return {label: text for label, text in block.items() if text}


def _work(config: RunConfig, steps: int, rows: int) -> str:
    """What all steps ask of the base."""
    forwards = config.method.forwards
    if config.objective.name == "reward":
        return f"{steps * forwards * rows:,} completions"
    return f"{steps * forwards:,} forwards"


def noise_words(sizes: Magnitudes, noises: Iterable[Noise]) -> str:
    """How large a population's noise is, and the weights that it is measured by."""
    of_a, of_b = zip(*(pair for noise in noises for pair in noise.by_site.values()), strict=True)
    return f"{_range(of_a)} on A, {_range(of_b)} on B; mean |W| {_range(sizes.mean_abs.values())}"


def _range(values: Iterable[float]) -> str:
    low, high = f"{min(values := list(values)):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _engine(config: RunConfig) -> str:
    """Who samples, where that is not this process."""
    engine = config.engine
    if engine.name == "local":
        return ""
    if isinstance(engine, RayConfig):
        own = engine.engines
        where = "on this machine" if engine.address == "local" else f"at {engine.address}"
        return f"ray {where}: {len(own)} x {own[0].name}, {engine.cores} threads each"
    url = getattr(engine, "url", None)
    return f"{engine.name} at {url}" if url is not None else engine.name


def _objective(config: RunConfig) -> str:
    objective = config.objective
    if objective.name == "nll":
        return "nll of the response's tokens"
    if objective.name == "reward":
        how = (
            "greedy"
            if objective.decoding.greedy
            else f"temperature {objective.decoding.temperature:g}"
        )
        whose = "" if objective.file is None else f" by {objective.function} in {objective.file}"
        return (
            f"reward of completions{whose}: {how}, at most {objective.decoding.max_tokens} tokens"
        )
    if objective.loss == "option":
        return "choice: nll of the right candidate's tokens"
    return "choice: cross-entropy over the candidates"


def _adapter(resolved: Resolved) -> str:
    """Rank, alpha and scale as they are, and why the rank is what it is."""
    adapter = resolved.config.adapter
    origin = resolved.origins["adapter.rank"]
    forced = f" ({origin})" if origin.startswith(FORCED_RANK) else ""
    return (
        f"rank {adapter.rank}{forced}, alpha {adapter.effective_alpha:g}, "
        f"scale {adapter.effective_scale:g}"
        + (" (rsLoRA)" if adapter.rslora else "")
        + (f", dropout {adapter.dropout:g}" if adapter.dropout else "")
        + (", B only" if adapter.factors == "b" else "")
    )


def _boosting(config: RunConfig, layout: Layout, rows: int, steps: int) -> str:
    """When rounds end, how often that will be, and what becomes of their adapters."""
    boost, trigger = config.boost, trigger_of(config, rows)
    if boost is None or trigger is None:
        return ""
    if boost.layers_per_round is not None:
        refuse_layers(layout, boost.layers_per_round)
    expected = trigger.expected(steps)
    parts = [f"commit {trigger.text}"]
    parts += [] if expected is None else [_commits(expected)]
    if expected != 0:
        place = "frozen stack" if boost.merge == "stack" else "weights"
        parts += [f"into the {place}", f"optimiser {boost.optimiser}"]
        parts += [f"warm-up {boost.warmup_steps} steps"] * bool(boost.warmup_steps)
        parts += [f"shrinkage {boost.shrinkage:g}"] * (boost.shrinkage != 1)
    parts += [f"{boost.layers_per_round} layers a round"] * bool(boost.layers_per_round)
    return ", ".join(parts)


def _commits(expected: int) -> str:
    return f"{expected:,} commit" + ("" if expected == 1 else "s")


def _epochs(count: float) -> str:
    return f"{count:.3g}" if count < 1000 else f"{count:,.0f}"


def _data(config: RunConfig, splits: dict[str, Split]) -> str:
    source = config.data.task or str(config.data.path)
    counts = ", ".join(f"{len(split.items):,} {name}" for name, split in splits.items())
    return f"{source} ({splits['train'].task.format.name}): {counts} rows"


def _spans(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "layers 0-2, 5"."""
    if not numbers:
        return "no numbered layer"
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    text = ", ".join(str(s[0]) if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in spans)
    return f"layer{'s' if len(numbers) > 1 else ''} {text}"
