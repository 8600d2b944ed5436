"""`python -m benchmarks [name ...]`: measure Weft beside its peers."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from rich.console import Console

from benchmarks import (
    breakdown,
    decode,
    mezo_step,
    mlx_training,
    population,
    recorder,
    report,
    sft_step,
)
from benchmarks.alpaca_lengths import describe, random_batches
from benchmarks.harness import Contender, Measurement, alternate
from weft.core.errors import WeftError
from weft.core.keys import Key

Benchmark = Callable[[argparse.Namespace, Console], None]


def run_sft_step(full: sft_step.Recipe) -> Benchmark:
    """Training steps of Weft, of PEFT with the Trainer and of TRL, on the same rows."""

    def run(options: argparse.Namespace, console: Console) -> None:
        recipe = full.small() if options.quick else full
        steps = options.rounds * options.steps
        key = Key.of(sft_step.SEED)
        rows = sft_step.BATCH_ROWS * recipe.adapters
        batches = random_batches(steps + 1, rows, recipe.vocabulary, key)
        warm_up, batches = batches[0], batches[1:]
        lengths = [example.tokens for batch in batches for example in batch.examples]
        load = report.load()
        limit = sft_step.limit(recipe, batches)
        contenders = sft_step.contenders(recipe)
        measurements = alternate(
            contenders, batches, options.rounds, [warm_up], progress=tell, tokens=recipe.tokens
        )
        if not recipe.base_dropout:  # which draws other noise for each contender
            sft_step.check_first_losses(measurements, recipe.dtype)
        what = f"{recipe.what}, {steps} timed steps in {options.rounds} rounds; "
        what += f"tokens per row: {describe(lengths)}; {limit.said_of(measurements)}"
        tell_result(recipe.name, what, load, measurements, options, console)
        if options.profile:
            columns = {
                c.what: breakdown.seconds_by_kind(c, batches[0], recipe.vocabulary)
                for c in contenders
            }
            breakdown.show(columns, console)

    return run


def run_mlx_training(options: argparse.Namespace, console: Console) -> None:
    """Training steps of Weft and of mlx-lm's trainer."""
    steps, key = options.rounds * options.steps, Key.of(sft_step.SEED)
    batches = random_batches(steps, mlx_training.ROWS, mlx_training.VOCABULARY, key)
    lengths = [example.tokens for batch in batches for example in batch.examples]
    load = report.load()
    measurements = alternate(
        mlx_training.contenders(), batches, options.rounds, batches, progress=tell
    )
    sft_step.check_first_losses(measurements, "float32")
    what = f"{mlx_training.WHAT}, {steps} timed steps in {options.rounds} rounds; "
    what += f"tokens per row: {describe(lengths)}"
    tell_result("mlx_training", what, load, measurements, options, console)


def run_decode(workload: decode.Workload) -> Benchmark:
    """Greedy decoding of Weft and of transformers' generate."""

    def run(options: argparse.Namespace, console: Console) -> None:
        steps = options.rounds * options.steps
        load = report.load()
        measurements = alternate(
            decode.contenders(workload),
            decode.batches(workload, steps),
            options.rounds,
            decode.batches(workload, 1),
            progress=tell,
            tokens=decode.new_tokens,
        )
        decode.check_same_tokens(measurements)
        what = f"{workload.what}; {steps} timed calls in {options.rounds} rounds"
        tell_result(workload.name, what, load, measurements, options, console)

    return run


def run_population(full: population.Workload) -> Benchmark:
    """Greedy decoding of many adapters, by Weft and by PEFT."""

    def run(options: argparse.Namespace, console: Console) -> None:
        workload = full.small() if options.quick else full
        steps = options.rounds * options.steps
        if workload.dtype == "float32":  # elsewhere rounding tells them apart
            population.check_same_tokens(workload)
        load = report.load()
        limit = population.limit(workload)
        measurements = alternate(
            population.contenders(workload),
            workload.batches(steps),
            options.rounds,
            progress=tell,
            tokens=workload.new_of,
        )
        what = f"{workload.what}; {steps} timed populations in {options.rounds} rounds"
        what += f"; {limit.said_of(measurements)}"
        tell_result(workload.name, what, load, measurements, options, console)

    return run


def run_mezo_step(options: argparse.Namespace, console: Console) -> None:
    """One MeZO step of Weft and of the published method, beside plain inference."""
    shape = mezo_step.SMALL if options.quick else mezo_step.OPT_350M
    _run_mezo("mezo_step", mezo_step.contenders(shape), shape, options, console)


def run_mezo_directions(options: argparse.Namespace, console: Console) -> None:
    """One MeZO step of Weft with more and more directions."""
    shape = mezo_step.SMALL if options.quick else mezo_step.OPT_350M
    _run_mezo("mezo_directions", mezo_step.directions_contenders(shape), shape, options, console)


def _run_mezo(
    name: str,
    contenders: Sequence[Contender],
    shape: mezo_step.Shape,
    options: argparse.Namespace,
    console: Console,
) -> None:
    steps = options.rounds * options.steps
    batches = mezo_step.random_batches(steps, shape)
    lengths = [example.tokens for batch in batches for example in batch.examples]
    workload = f"{shape.what}; {mezo_step.WHAT}; {steps} timed steps in {options.rounds} rounds; "
    load = report.load()
    measurements = alternate(contenders, batches, options.rounds, batches[:1], progress=tell)
    mezo_step.check_first_losses(measurements)
    tell_result(
        name, f"{workload}tokens per row: {describe(lengths)}", load, measurements, options, console
    )


def run_recorder(options: argparse.Namespace, console: Console) -> None:
    """Programs alone and under `weft record`."""
    load = report.load()
    costs = recorder.measure(recorder.programs(options.quick), options.rounds, tell)
    facts = _facts(recorder.NAME, recorder.workload(options.rounds), load)
    tell_report(recorder.Costs(*facts, costs), options, console)


def tell(progress: str) -> None:
    """What is running now."""
    print(progress, file=sys.stderr)


def tell_result(
    name: str,
    workload: str,
    load: float,
    measurements: Sequence[Measurement],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Show what contenders did, and write it down where that was asked for."""
    facts = _facts(name, workload, load)
    tell_report(report.Speeds(*facts, "weft", tuple(measurements)), options, console)


def tell_report(result: report.Report, options: argparse.Namespace, console: Console) -> None:
    """Show a result, and write it down where that was asked for."""
    report.show(result, console)
    if options.write:
        console.print(f"written: {report.save(result)}, {result.page}", highlight=False)
        report.publish(result)


def _facts(name: str, workload: str, load: float) -> tuple[Any, ...]:
    """What every report begins with."""
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    return (
        name, command, report.now(), workload, report.hardware(), report.versions(), load
    )  # fmt: skip


BENCHMARKS: dict[str, Benchmark] = {
    **{recipe.name: run_sft_step(recipe) for recipe in sft_step.RECIPES},
    "mlx_training": run_mlx_training,
    **{workload.name: run_decode(workload) for workload in decode.WORKLOADS},
    **{workload.name: run_population(workload) for workload in population.WORKLOADS},
    "mezo_step": run_mezo_step,
    "mezo_directions": run_mezo_directions,
    recorder.NAME: run_recorder,
}


def main() -> int:
    """Run the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=4, help="rounds of all contenders")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: one a core)")
    parser.add_argument("--quick", action="store_true", help="one round of one step: does it run?")
    parser.add_argument("--profile", action="store_true", help="also: where the time goes")
    parser.add_argument(
        "--write", action="store_true", help="also: results/*.json and the pages of docs/"
    )
    options = parser.parse_args()
    names = options.names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there is: {', '.join(BENCHMARKS)}")
    if options.quick and options.write:
        parser.error("--quick measures nothing worth writing down")
    if options.quick:
        options.rounds = options.steps = 1
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # the peers' deprecations are not ours to mend
    console = Console(width=None if sys.stdout.isatty() else 100)
    try:
        for name in names:
            BENCHMARKS[name](options, console)
    except WeftError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
