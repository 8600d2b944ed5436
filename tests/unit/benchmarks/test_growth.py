"""Curves of growth: their points, exponents and pictures."""

import dataclasses
import json

import pytest

from benchmarks import report
from benchmarks.device import Memory
from benchmarks.growth import AXES, Axis, exponent, measured
from benchmarks.growth_data import started, written
from benchmarks.growth_figure import drawn, newest
from benchmarks.harness import Trace
from benchmarks.race import Options


def axis(visits: list[int], values: tuple[int, ...] = (10, 20, 40)) -> Axis:
    """One whose step takes value^2 seconds, and 1,000 seconds to warm up."""

    def build(value, setting):
        visits.append(value)
        return lambda count: Trace((1000.0, *[value**2] * (count - 1)), (), Memory(5, 5 + value))

    return Axis("rank", "rank", values, "nothing else", build, "step")


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_an_exponent_is_the_slope_of_the_upper_half(power):
    curve = [(1, 50.0), (2, 50.0), *((x, 3 * x**power) for x in (4, 8, 16))]
    assert exponent(curve) == pytest.approx(power)


def test_points_are_visited_up_and_down_and_warming_up_does_not_count():
    visits = []
    found = measured(axis(visits), Options(rounds=2, steps=3))
    assert visits == [10, 20, 40, 40, 20, 10]
    assert [p.seconds for p in found.points] == [(v**2,) * 6 for v in (10, 20, 40)]
    assert [p.memory for p in found.points] == [10, 20, 40]
    assert found.notes == ["exponents over the upper half: time 2.00, memory 1.00"]


def test_what_takes_very_long_is_visited_in_the_first_round_only():
    visits = []
    rare = dataclasses.replace(axis(visits), rare=40)
    found = measured(rare, Options(rounds=2, steps=3))
    assert visits == [10, 20, 40, 20, 10]
    assert [len(p.seconds) for p in found.points] == [6, 6, 3]


def test_every_axis_has_its_place_on_the_page():
    from benchmarks.growth import BENCHMARKS

    assert len(BENCHMARKS) == len(AXES)
    for each in BENCHMARKS:
        report.check_place(each.name, each.page)


def test_the_figure_is_of_the_newest_results(tmp_path):
    for day, values in (("2026-01-02", (1, 2)), ("2026-01-03", (1, 2, 4))):
        found = dataclasses.asdict(measured(axis([], values), Options()))
        (tmp_path / f"{day}-growth_rank.json").write_text(json.dumps(found))
    (result,) = newest(tmp_path)
    assert [point["value"] for point in result["points"]] == [1, 2, 4]
    drawn([result], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_start_reads_the_rows_that_were_written():
    with written(30) as path:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found = started(path)
    assert len({row["prompt"] for row in rows}) == 30
    assert found["seconds"] > 0
    assert found["peak_bytes"] >= found["baseline_bytes"]
