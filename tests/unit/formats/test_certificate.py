"""A certificate vouches for its files only."""

from __future__ import annotations

import json

import pytest

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
)


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
