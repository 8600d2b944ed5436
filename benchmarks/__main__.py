"""`python -m benchmarks [name ...]`: measure Weft beside its peers."""

from __future__ import annotations

import argparse
import sys
import warnings

import torch
import transformers
from rich.console import Console

from benchmarks import (
    compiled,
    decode,
    growth,
    mezo_step,
    mlx_training,
    population,
    recorder,
    report,
    sft_step,
    start_up,
    targets,
)
from benchmarks.device import NAMES, Device
from benchmarks.race import Benchmark, Options
from weft.core.errors import InputError, WeftError

MODULES = (
    sft_step,
    compiled,
    mlx_training,
    decode,
    population,
    mezo_step,
    growth,
    start_up,
    recorder,
)
BENCHMARKS: dict[str, Benchmark] = {
    each.name: each for module in MODULES for each in module.BENCHMARKS
}


def main() -> int:
    """Run the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=4, help="rounds of all contenders")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round")
    parser.add_argument("--device", choices=NAMES, help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: one a core)")
    parser.add_argument("--quick", action="store_true", help="one round of one step: does it run?")
    parser.add_argument("--profile", action="store_true", help="also: where the time goes")
    parser.add_argument(
        "--write", action="store_true", help="also: results/*.json and the pages of docs/"
    )
    parser.add_argument(
        "--targets", action="store_true", help="measure nothing: what was asked for, and reached"
    )
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if not _begun(name)]:
        parser.error(f"no benchmark {unknown[0]!r}; there is: {', '.join(BENCHMARKS)}")
    if asked.quick and asked.write:
        parser.error("--quick measures nothing worth writing down")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # the peers' deprecations are not ours to mend
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        if asked.targets:
            publish_targets(console)
            return 0
        options = Options(
            1 if asked.quick else asked.rounds,
            1 if asked.quick else asked.steps,
            asked.quick,
            asked.profile,
            Device.of(asked.device),
        )
        for benchmark in chosen(asked.names, options.device, console):
            if asked.write:
                report.check_place(benchmark.name, benchmark.page)
            result = benchmark.run(options)
            report.show(result, console)
            if asked.profile and not isinstance(result, report.Speeds):
                console.print(f"{benchmark.name} has no contenders to profile", highlight=False)
            if asked.write:
                console.print(f"written: {report.save(result)}, {benchmark.page}", highlight=False)
                report.publish(result, benchmark.page)
        if asked.write:
            publish_targets(console)
    except WeftError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def publish_targets(console: Console) -> None:
    """Show the newest results beside what was asked for, and put them at the head of the page."""
    rows = targets.rows(report.RESULTS)
    report.show_table(rows, targets.NAME, console)
    report.write_part(targets.NAME, report.markdown(rows), report.PAGE)


def chosen(names: list[str], device: Device, console: Console) -> list[Benchmark]:
    """The named ones, or all that have something to do on this device; the rest is told.

    What begins several names stands for all of them.
    """
    found = []
    wanted = [each for name in names for each in _begun(name)]
    for benchmark in wanted or BENCHMARKS.values():
        if device.is_cpu or not benchmark.only_cpu:
            found.append(benchmark)
        elif names:
            raise InputError(f"{benchmark.name}: {benchmark.only_cpu}", "use --device cpu")
        else:
            console.print(f"{benchmark.name} is left out: {benchmark.only_cpu}", highlight=False)
    return found


def _begun(name: str) -> list[Benchmark]:
    exact = [BENCHMARKS[name]] if name in BENCHMARKS else []
    return exact or [each for each in BENCHMARKS.values() if each.name.startswith(f"{name}_")]


if __name__ == "__main__":
    sys.exit(main())
