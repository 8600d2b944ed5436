"""The configuration block: what a run really uses, in a few lines for people."""

from __future__ import annotations

from weft.data.split import Split
from weft.data.stream import steps_per_epoch
from weft.model.adapter import Layout
from weft.training.config import RunConfig
from weft.training.job import total_steps


def configuration_block(
    config: RunConfig, layout: Layout, splits: dict[str, Split]
) -> dict[str, str]:
    """Label to value, as printed at the start of a run and stored in its manifest."""
    adapter, optimiser, rows = config.adapter, config.optimiser, len(splits["train"].items)
    steps = total_steps(config, rows)
    layers = sorted({s.site.layer for s in layout.slots if s.site.layer is not None})
    leaves = sorted({slot.site.name.rsplit(".", 1)[-1] for slot in layout.slots})
    alpha, scale = adapter.effective_alpha, adapter.effective_scale
    lanes = config.lanes
    warmup = f", warm-up {optimiser.warmup_ratio:.0%}" if optimiser.warmup_ratio else ""
    block = {
        "base": f"{config.base} ({config.dtype}, {config.device})",
        "data": _data(config, splits),
        "method": config.method.name,
        "adapter": f"rank {adapter.rank}, alpha {alpha:g}, scale {scale:g}"
        + (" (rsLoRA)" if adapter.rslora else "")
        + (f", dropout {adapter.dropout:g}" if adapter.dropout else ""),
        "sites": f"{len(layout.slots)}: {', '.join(leaves)} in {_spans(layers)}",
        "parameters": f"{layout.size:,}" + (f" x {len(lanes)}" if len(lanes) > 1 else ""),
        "optimiser": f"{optimiser.name}, lr {', '.join(f'{lr:g}' for lr in optimiser.lrs)}, "
        f"{optimiser.schedule}{warmup}",
        "length": f"{steps:,} steps of {config.batch_size} rows"
        + (f" ({config.micro_batch_size} a forward)" if config.micro_batch_size else "")
        + f" = {steps / steps_per_epoch(rows, config.batch_size):.3g} epochs",
        "seed": ", ".join(str(seed) for seed in config.seeds or (config.seed,)),
        "keeps": f"the {config.keep} adapter"
        + (f", evaluated every {config.eval.every} steps" if config.eval.every else ""),
    }
    if config.base_dropout:
        block["base dropout"] = "on"
    return block


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
