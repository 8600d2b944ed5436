"""Factors read without torch are those that the formats' own readers give."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.core.errors import InputError
from weft.formats.factors import read_factors
from weft.formats.loaded import UndecidedScale
from weft.formats.peft import write_adapter
from weft.formats.registry import FORMATS
from weft.model.adapter import Site, Slot

PLACES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj")


@pytest.fixture
def adapter(adapter_of):
    sites = [Site(name, "linear", 12, 20, layer) for layer, name in enumerate(PLACES)]
    return adapter_of([Slot(site, 3, 20.0) for site in sites])


def same(read, adapter):
    assert set(read.sites) == set(adapter.sites)
    for name, (a_rI, b_Or) in adapter.sites.items():
        pair = read.sites[name]
        np.testing.assert_array_equal(pair.a_rI, a_rI.numpy())
        np.testing.assert_array_equal(pair.b_Or, b_Or.numpy())
        assert (pair.rank, pair.scale) == (3, adapter.layout.by_name[name].scale)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "npz"])
def test_every_format_gives_what_its_own_reader_gives(name, adapter, tmp_path):
    FORMATS[name].write(adapter, tmp_path / "a", base_ref="weft/tiny", dropout=0.25)
    theirs, read = FORMATS[name].read(tmp_path / "a"), read_factors(tmp_path / "a")
    same(read, theirs.adapter)
    assert (read.format, read.base_ref) == (theirs.format, theirs.base_ref)
    assert (read.scale_from, read.config) == (theirs.scale_from, theirs.config)
    assert read.dropout == 0.25


def test_a_file_that_leaves_its_scale_open_is_told_with_what_it_may_be(adapter, tmp_path):
    FORMATS["npz"].write(adapter, tmp_path, base_ref="weft/tiny")
    with pytest.raises(UndecidedScale, match=r"20: .*\n.*2: "):
        read_factors(tmp_path)


def test_rslora_and_patterns_decide_the_scale_as_for_peft(adapter, tmp_path):
    write_adapter(adapter, tmp_path, base_ref="weft/tiny")
    config = tmp_path / "adapter_config.json"
    config.write_text(
        config.read_text()
        .replace('"use_rslora": false', '"use_rslora": true')
        .replace('"alpha_pattern": {}', '"alpha_pattern": {"v_proj": 5}')
    )
    theirs, read = FORMATS["peft"].read(tmp_path), read_factors(tmp_path)
    scales = {name: pair.scale for name, pair in read.sites.items()}
    assert scales == {n: slot.scale for n, slot in theirs.adapter.layout.by_name.items()}
    assert {pair.alpha for pair in read.sites.values()} == {60.0, 5.0}


def test_sixteen_bits_are_widened_exactly(adapter, tmp_path):
    write_adapter(adapter, tmp_path, base_ref="weft/tiny")
    file = tmp_path / "adapter_model.safetensors"
    save_file({n: t.to(torch.bfloat16) for n, t in load_file(file).items()}, file)
    theirs, read = FORMATS["peft"].read(tmp_path), read_factors(tmp_path)
    same(read, theirs.adapter)


def test_what_is_more_than_lora_is_refused_in_the_same_words(adapter, tmp_path):
    write_adapter(adapter, tmp_path, base_ref="weft/tiny")
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": false', '"use_dora": true'))
    problems = []
    for read in (FORMATS["peft"].read, read_factors):
        with pytest.raises(InputError) as caught:
            read(tmp_path)
        problems.append(str(caught.value))
    assert problems[0] == problems[1]


def test_a_torn_file_and_an_empty_directory_are_told(adapter, tmp_path):
    write_adapter(adapter, tmp_path / "a", base_ref="weft/tiny")
    file = tmp_path / "a" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"cannot read .*adapter_model"):
        read_factors(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="the directory is empty"):
        read_factors(tmp_path / "b")


def test_reading_takes_no_torch(adapter, tmp_path):
    write_adapter(adapter, tmp_path, base_ref="weft/tiny")
    program = (
        "import sys; from pathlib import Path; from weft.formats.factors import read_factors;"
        f"read_factors(Path({str(tmp_path)!r}));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
