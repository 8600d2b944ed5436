"""What was looked at before, while and after a run trained, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weft.cli import screen

if TYPE_CHECKING:
    from weft.runs.reader import RunReader

SHOWN = 12
"""Steps of commits that are listed one by one."""


def checks(reader: RunReader) -> list[tuple[str, str]]:
    """What was looked at before, while and after a run trained, in words."""
    manifest = reader.manifest
    rows = list(preflight(manifest.events).items())
    for kind, label in (("commit", "commits"), ("restart", "rounds without a commit")):
        steps: dict[str, list[int]] = {}
        for event in manifest.events:
            if event["kind"] == kind:
                steps.setdefault(event["member"], []).append(event["step"])
        if len({tuple(each) for each in steps.values()}) == 1:
            rows.append((label, _at_steps(next(iter(steps.values())))))
        else:
            rows += [(f"{label} of {name}", _at_steps(each)) for name, each in steps.items()]
    rows += [
        ("certificate", text.removeprefix("certificate: ")) for text in certificate_lines(reader)
    ]
    checked = [event for event in manifest.events if event["kind"] == "base checked"]
    if checked:
        same = "did not change" if checked[-1]["unchanged"] else "changed"
        rows.append(("base", f"its weights {same} during the run"))
    return rows


def _at_steps(steps: list[int]) -> str:
    """How many there are, and at which steps: the first few and the last where there are many."""
    shown = [f"{step:,}" for step in steps]
    if len(shown) > SHOWN:
        shown = [*shown[:3], "...", shown[-1]]
    return f"{len(steps)}: after step{'s' if len(steps) > 1 else ''} {' '.join(shown)}"


def preflight(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the look before the first step found, as a line of the configuration block."""
    facts = next((event for event in events if event["kind"] == "preflight"), None)
    if facts is None:
        return {}
    if facts.get("saddle"):
        return {"preflight": "the centre is zero, a saddle: the first updates are noise"}
    if not facts["slope"]:
        return {"preflight": f"no loss changes at eps {facts['eps']:g}"}
    changes = (facts["change_at_half"], facts["change_at_double"])
    half, double = ("-" if change is None else f"{change:.2%}" for change in changes)
    return {
        "preflight": f"slopes of {screen.number(facts['slope'])} at eps {facts['eps']:g}; they "
        f"change by {half} at half of it, by {double} at twice"
    }


def certificate_lines(reader: RunReader) -> list[str]:
    """That what a boosted run wrote is what it trained; nothing of other runs."""
    if "certificate" not in reader.result_names():
        return []
    found = reader.results("certificate")
    members = found["members"].values()
    ranks = sorted({member["rank"] for member in members})
    worst = max(member["largest_difference"] for member in members)
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    apart = f"differ from the run's own by at most {worst:.2g}" if worst else "are the run's own"
    limit = f"rounding explains {found['tolerance']:.2g}"
    return [f"certificate: read back, {rank}; the logits {apart} ({limit})"]
