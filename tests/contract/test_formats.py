"""What every entry of `FORMATS` promises. A new format is tested by being in the dict."""

import pytest
import torch

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.formats.registry import FORMATS
from weft.model.adapter import Adapter
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites

FILES = pytest.mark.parametrize("name", sorted(FORMATS))
LAYOUTS = {
    "all linear": {"rank": 3, "alpha": 6},
    "last layer": {"rank": 2, "targets": ("q_proj", "v_proj"), "layers": "last 1"},
    "rslora": {"rank": 5, "alpha": 7, "rslora": True, "targets": ("o_proj",)},
    "scale": {"rank": 8, "scale": 20, "targets": ("q_proj", "v_proj")},
}


@pytest.fixture(scope="module")
def base(make_base):
    return make_base("llama")


def adapter_of(base, settings) -> Adapter:
    layout = choose_sites(base.sites, AdapterConfig(**settings))
    generator = torch.Generator().manual_seed(Key.of(1).value >> 1)
    return Adapter(layout, torch.randn(layout.size, generator=generator))


def updates(adapter):
    return {
        name: adapter.layout.by_name[name].scale * (b_Or @ a_rI)
        for name, (a_rI, b_Or) in adapter.sites.items()
    }


@FILES
@pytest.mark.parametrize("settings", LAYOUTS.values(), ids=LAYOUTS)
def test_what_is_written_is_read_as_the_same_function(name, settings, base, tmp_path):
    written = adapter_of(base, settings)
    FORMATS[name].write(written, tmp_path / "adapter", base_ref="llama", sites=base.sites)
    read = FORMATS[name].read(tmp_path / "adapter", base.sites).adapter
    before, after = updates(written), updates(read)
    assert list(before) == list(after)
    for site in before:
        torch.testing.assert_close(after[site], before[site], rtol=1e-6, atol=1e-7)


@FILES
def test_a_format_knows_its_own_files_and_no_others(name, base, tmp_path):
    FORMATS[name].write(adapter_of(base, {}), tmp_path / "mine", base_ref="llama")
    (tmp_path / "empty").mkdir()
    assert FORMATS[name].detect(tmp_path / "mine")
    assert not FORMATS[name].detect(tmp_path / "empty")
    others = [other for other in FORMATS if other != name]
    assert not any(FORMATS[other].detect(tmp_path / "mine") for other in others)


@FILES
def test_the_same_adapter_is_the_same_bytes(name, base, tmp_path):
    for place in ("one", "two"):
        FORMATS[name].write(adapter_of(base, {}), tmp_path / place, base_ref="llama")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@FILES
def test_a_file_that_was_cut_short_is_an_error_that_names_it(name, base, tmp_path):
    FORMATS[name].write(adapter_of(base, {}), tmp_path / "adapter", base_ref="llama")
    largest = max((tmp_path / "adapter").iterdir(), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    with pytest.raises(InputError, match=largest.name):
        FORMATS[name].read(tmp_path / "adapter", base.sites)


@FILES
def test_an_adapter_of_another_base_is_refused(name, base, make_base, tmp_path):
    FORMATS[name].write(adapter_of(base, {}), tmp_path / "adapter", base_ref="llama")
    with pytest.raises(InputError):
        FORMATS[name].read(tmp_path / "adapter", make_base("gpt2").sites)
