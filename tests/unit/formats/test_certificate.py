"""What a certificate measures is what plain matrices say, and it vouches for its files only."""

from __future__ import annotations

import json

import pytest
import torch

from weft.core.errors import InputError
from weft.formats.certificate import (
    BaseRecord,
    Certificate,
    Files,
    LogitRecord,
    SiteRecord,
    Strength,
    certificate_of,
    certified_scale,
    hashes,
    load_certificate,
    merged_records,
    rounding_unit,
    site_records,
    update_difference,
)
from weft.formats.merged import merged_weights
from weft.model.adapter import Adapter, Layout, Site, Slot


def factors(seed, rank=3, outputs=20, inputs=15):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rank, inputs), (outputs, rank))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-9])
def test_the_difference_of_updates_is_that_of_the_products(size):
    """Also far below what Grams resolve: the direct difference of the matrices is the reference."""
    a, b = factors(0)
    more_a, more_b = factors(1)
    other = (torch.cat([a, more_a]), torch.cat([b, size * more_b], dim=1))  # another rank, too
    whole = max(torch.linalg.norm(b @ a), torch.linalg.norm(other[1] @ other[0]))
    wanted = torch.linalg.norm(size * more_b @ more_a) / whole
    assert update_difference((a, b), other) == pytest.approx(float(wanted), rel=1e-5)


def test_the_same_update_in_other_factors_is_no_difference():
    a, b = factors(0)
    turn, _ = torch.linalg.qr(factors(1, 3, 3, 3)[0])
    assert update_difference((a, b), (turn @ a, b @ turn.T)) < 1e-14
    assert update_difference((a, b), (a, b)) == 0
    nothing = (a, torch.zeros_like(b))
    assert update_difference(nothing, nothing) == update_difference(nothing, None) == 0
    assert update_difference((a, b), None) == 1


def adapter(scale, values, rank=2):
    site = Site("model.layers.0.q_proj", "linear", 4, 5, 0)
    layout = Layout((Slot(site, rank, scale),))
    return Adapter(layout, values)


def test_a_scale_that_moved_into_b_is_the_same_update():
    values = torch.randn(18, generator=torch.Generator().manual_seed(0))
    moved = values.clone()
    moved[8:] *= 0.1
    (found,) = site_records(adapter(2.0, values), adapter(20.0, moved)).values()
    assert (found.source.scale, found.result.scale) == (2.0, 20.0)
    assert found.update_difference < 1e-7
    (wrong,) = site_records(adapter(2.0, values), adapter(20.0, values)).values()
    assert wrong.update_difference == pytest.approx(0.9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_rounding_explains_a_merge_and_no_place_that_was_forgotten(
    make_base, adapter_of, architecture, dtype
):
    base, merged = make_base(architecture), make_base(architecture)
    adapter = adapter_of([Slot(site, 2, 0.5) for site in base.sites.values()])
    weights = merged_weights(base, adapter, dtype)
    merged.model.load_state_dict(weights)
    for site in merged_records(base, merged, adapter, dtype).values():
        assert 0 < site.update_difference <= site.update_tolerance < 0.05
    forgotten, *_, swapped = base.sites
    plain = base.model.get_submodule(forgotten).weight
    merged.model.get_submodule(forgotten).weight.copy_(plain)
    merged.model.get_submodule(swapped).weight.mul_(-1)
    found = merged_records(base, merged, adapter, dtype)
    assert found[forgotten].update_difference == pytest.approx(1)
    wrong = [name for name, s in found.items() if s.update_difference > s.update_tolerance]
    assert wrong == [forgotten, swapped]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_unit_of_rounding_is_the_largest_error_of_one_number(dtype):
    numbers = 1 + torch.arange(2**16, dtype=torch.float64) / 2**16
    numbers = torch.cat([numbers, numbers.new_tensor([1 + rounding_unit(dtype) * (1 - 1e-6)])])
    errors = (numbers.to(getattr(torch, dtype)).double() - numbers).abs() / numbers
    assert 0.99 * rounding_unit(dtype) < errors.max() <= rounding_unit(dtype)


@pytest.fixture
def certified(tmp_path):
    """A directory with a file, and a certificate for it."""
    (tmp_path / "adapters.npz").write_bytes(b"factors")
    made = Certificate(
        source=Files(path="there", format="peft", files={"a": "0"}),
        result=Files(format="npz", files=hashes(tmp_path)),
        base=BaseRecord(ref="base", sha256="1", dtype="float32"),
        scale_from="alpha / r",
        sites={
            name: SiteRecord(
                source=Strength(rank=2, scale=4.0),
                result=Strength(rank=2, scale=20.0),
                update_difference=0.0,
                update_tolerance=1e-6,
            )
            for name in ("one", "two")
        },
        logits=LogitRecord(
            texts=1,
            positions=2,
            largest_logit=3.0,
            adapter_effect=1.0,
            largest_difference=0.0,
            tolerance=1e-5,
            reason="rounding",
        ),
        holds=True,
    )
    made.save(tmp_path)
    return tmp_path, made


def test_a_certificate_is_read_as_it_was_written(certified):
    directory, made = certified
    assert load_certificate(directory) == made
    assert load_certificate(directory / "none") is None


def test_it_gives_the_scale_of_exactly_its_files(certified):
    directory, made = certified
    file = directory / "adapters.npz"
    assert certificate_of(directory) == certificate_of(file) == made
    assert certified_scale(directory) == certified_scale(file) == 20.0
    file.write_bytes(b"others")
    assert certified_scale(directory) is certified_scale(file) is None


def test_sites_of_different_scales_have_no_common_one(certified):
    directory, made = certified
    other = made.sites["two"].model_copy(update={"result": Strength(rank=2, scale=1.0)})
    made.model_copy(update={"sites": made.sites | {"two": other}}).save(directory)
    assert certified_scale(directory) is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", "is not a certificate of Weft:\n  source"),
        ('{"schema_version": 99}', "has schema version 99"),
        ("[1", "not valid JSON"),
    ],
)
def test_a_certificate_of_others_is_an_error_that_names_it(certified, content, problem):
    directory, _ = certified
    (directory / "certificate.json").write_text(content)
    with pytest.raises(InputError, match=problem):
        load_certificate(directory)


def test_its_json_is_plain(certified):
    directory, _ = certified
    found = json.loads((directory / "certificate.json").read_text())
    assert found["holds"] is True
    assert found["sites"]["one"]["result"] == {"rank": 2, "scale": 20.0}
    assert found["result"]["files"] == hashes(directory)
    assert list(found)[:4] == ["schema_version", "weft", "time", "source"]
