"""`weft export`: an adapter for PEFT, for MLX, or merged into its base, with a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import options, screen
from weft.core.errors import InputError

if TYPE_CHECKING:
    from weft.formats.certificate import Certificate

OutDir = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Where to write: a directory that does not exist."),
]


def export(
    subject: Annotated[
        str, typer.Argument(metavar="RUN|ADAPTER", help="A run or an adapter, in any format.")
    ],
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="peft, mlx, npz, or merged.")
    ] = None,
    out: OutDir = None,
    base: options.Base = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a merged model: float32, bfloat16 or float16 [default: as the base's files].",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write an adapter for PEFT or MLX, or merged into its base.

    Source and result are read back from disk and compared on real forwards. What was found lies
    beside the result as certificate.json; a result that is another function is not kept.
    """
    from weft import export_adapter

    if to is None:
        raise InputError("--to says what to write, and is missing", "--to peft, mlx, npz or merged")
    place = required(out)
    with screen.console().status("converting"):
        made = export_adapter(subject, to, place, base=base, dtype=dtype)
    finish(made, place, json=json)


def required(out: Path | None) -> Path:
    """The directory to write to."""
    if out is None:
        raise InputError("--out says where to write, and is missing", "give --out DIR")
    return out


def finish(made: Certificate, out: Path, *, json: bool) -> None:
    """Print a certificate, and what to do next."""
    if json:
        screen.put_json(made.model_dump())
        return
    screen.notices(made.notes)
    if made.scale_choice:
        screen.put(_candidates(made.scale_choice))
        screen.put()
    screen.put(screen.pairs(_lines(made, out)))
    screen.say()
    screen.say(f"next: {_next(made, out)}")


def _lines(made: Certificate, out: Path) -> dict[str, str]:
    logits = made.logits
    scales = {site.source.scale for site in made.sites.values() if site.source}
    ranks = {site.source.rank for site in made.sites.values() if site.source}
    apart = max(made.sites.values(), key=lambda site: site.update_difference)
    share = f"{apart.update_difference:.2g} of |dW| at the site where they differ most"
    if not apart.update_difference:
        share = "identical"
    rounding = " after rounding W + dW" if made.result.format == "merged" else ""
    return {
        "source": f"{made.source.path} ({made.source.format})",
        "result": f"{out} ({made.result.format}, {made.result.dtype})",
        "base": f"{made.base.ref}, sha256 {made.base.sha256[:12]} in {made.base.dtype}",
        "sites": f"{len(made.sites)} of rank {_all(ranks)}",
        "scale": f"{_all(scales)}: {made.scale_from}" + (_own_scale(made) or ""),
        "updates": f"{share}{rounding} (allowed {apart.update_tolerance:.2g})",
        "logits": f"{logits.largest_difference:.2g} apart at most, on {logits.texts} texts of "
        f"{logits.positions} tokens; the adapter moves them by up to {logits.adapter_effect:.2g}",
        "allowed": f"{logits.tolerance:.2g} ({logits.reason})",
        "same function": f"yes, to the rounding of {made.result.dtype}",
        "certificate": str(out / "certificate.json"),
    }


def _own_scale(made: Certificate) -> str | None:
    """The scale in the result's files, where that is another one."""
    pairs = [(s.source, s.result) for s in made.sites.values() if s.source and s.result]
    other = {after.scale for before, after in pairs if after.scale != before.scale}
    return f"; written as {_all(other)}, with B to match" if other else None


def _all(values: set[Any]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


def _candidates(choice: dict[str, Any]) -> screen.Renderable:
    """What every scale scores, the best first, and the base without the adapter."""
    rows = []
    for found in choice["candidates"]:
        above = found["above_best"]
        ends = f"{screen.number(above['low'])} to {screen.number(above['high'])}" if above else "-"
        more = screen.number(above["estimate"]) if above else "best"
        what = f"{found['scale']:g}, {found['reason']}"
        rows.append((what, screen.number(found["loss"]), more, ends))
    rows.append(("the base alone", screen.number(choice["base_loss"]), "", ""))
    on = f"loss on {choice['examples']:,} rows"
    return screen.table(("scale", on, "above the best", "95 % interval"), rows)


def _next(made: Certificate, out: Path) -> str:
    """A command that uses the result."""
    base = made.base.ref
    if made.result.format == "mlx":
        from weft.data.tokenizer import resolve_base

        return screen.command(
            "mlx_lm.generate", "--model", resolve_base(base), "--adapter-path", out,
            "--prompt", "Hello",
        )  # fmt: skip
    if made.result.format == "merged":
        return screen.command("weft", "generate", out, "--prompt", "Hello")
    return screen.command("weft", "inspect", out, "--base", base)
