"""Results reach their place on a page; targets are read from the newest of them."""

import json

import pytest

from benchmarks import report, targets
from benchmarks.__main__ import BENCHMARKS, chosen
from benchmarks.device import Device
from benchmarks.harness import Measurement, Round
from benchmarks.limit import Limit
from weft.core.errors import InputError


def speeds(date="2026-11-22 04:00 UTC", device="cpu", profile=None):
    def rounds(seconds):
        return (Round((seconds,), 100, 0.0, 0, 2**20),)

    return report.Speeds(
        benchmark="sft_eight_adapters",
        device=device,
        command="python -m benchmarks",
        date=date,
        workload="rows",
        hardware="a machine",
        versions={"Python": "3"},
        load_at_start=0.0,
        subject="weft",
        measurements=(
            Measurement("peft_trainer_dynamic", "PEFT", rounds(10.0)),
            Measurement("weft", "Weft", rounds(4.0)),
        ),
        limits=(Limit("products", 10**9, "FLOP", 1.0),),
        profile=profile,
    )


def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n{}\nold\n{}\nafter\n".format(*report.markers("sft_eight_adapters")))
    return path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_place(name):
    report.check_place(name, BENCHMARKS[name].page)


def test_targets_have_a_place_and_their_benchmarks_exist():
    report.check_place(targets.NAME, report.PAGE)
    assert {target.benchmark for target in targets.TARGETS} <= BENCHMARKS.keys()


def test_a_page_without_a_place_is_an_error_in_words(tmp_path):
    with pytest.raises(InputError, match=r"page\.md has no place for other"):
        report.check_place("other", page(tmp_path))


def test_tables_and_profile_replace_what_stood_there(tmp_path):
    path = page(tmp_path)
    kinds = {"PEFT": {"products": 7.0, "rest": 3.0}, "Weft": {"products": 3.0, "rest": 1.0}}
    report.publish(speeds(profile=kinds), path)
    report.publish(speeds(profile=kinds), path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| seconds of one step | PEFT | Weft |\n|---|---:|---:|\n| products | 7.0000 |" in text
    assert text.count("| all | 10.0000 | 4.0000 |") == 1
    assert "of a step: PEFT 10%; Weft 25%" in text


def test_a_gpus_tables_stand_beside_the_processors(tmp_path, monkeypatch):
    path = page(tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    on_gpu = speeds(device="cuda")
    for _ in range(2):
        report.publish(on_gpu, path)
    text = path.read_text()
    assert text.index("old") < text.index("<!-- sft_eight_adapters-cuda: start -->")
    assert text.count("On a GPU:") == 1
    assert report.save(on_gpu).name == "2026-11-22-sft_eight_adapters-cuda.json"


def test_a_target_is_read_from_the_newest_result_on_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for each in (speeds(), speeds("2026-11-21 04:00 UTC"), speeds("2026-11-23 04:00 UTC", "cuda")):
        report.save(each)
    rows = targets.rows(tmp_path)
    (row,) = (row for row in rows if row[0] == "8 adapters at once")
    assert row == ["8 adapters at once", "8 PEFT runs", "2x", "3x", "2.5x", "reached", "2026-11-22"]
    assert [row[4] for row in rows].count(targets.NOT_MEASURED) == len(targets.TARGETS) - 1


def test_a_figure_is_missed_reached_or_at_its_aim():
    result = json.loads(json.dumps({"date": "2026-11-22", "seconds": {"weft check": [0.7, 0.7]}}))
    for least, aim, verdict in ((1, 0.5, "reached"), (2, 1, "aim"), (0.5, 0.2, "**missed**")):
        assert targets.start("weft check", "", least, aim).row(result)[4:6] == ["0.7 s", verdict]


def test_what_a_gpu_has_nothing_to_do_with_is_refused_by_name_and_left_out_aloud(capsys):
    from rich.console import Console

    with pytest.raises(InputError, match="mlx_training: mlx-lm is measured on the processor"):
        chosen(["mlx_training"], Device("cuda"), Console())
    names = {each.name for each in chosen([], Device("cuda"), Console(width=200))}
    assert "sft_step" in names and "mlx_training" not in names
    assert "mlx_training is left out" in capsys.readouterr().out


def test_the_beginning_of_names_means_all_of_them():
    from rich.console import Console

    names = [each.name for each in chosen(["decode"], Device("cpu"), Console())]
    assert len(names) == 4 and all(name.startswith("decode_") for name in names)
