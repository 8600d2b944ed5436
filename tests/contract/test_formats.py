"""What every entry of `FORMATS` promises. A new format is tested by being in the dict."""

from dataclasses import replace

import pytest
import torch

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.formats.loaded import GIVEN
from weft.formats.registry import FORMATS, detect_format, read_any
from weft.model.adapter import Adapter
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites

FILES = pytest.mark.parametrize("name", sorted(FORMATS))
USUAL = {"targets": ("q_proj", "v_proj")}
LAYOUTS = {
    "usual": USUAL,
    "last layer": USUAL | {"rank": 2, "layers": "last 1"},
    "first layer": USUAL | {"rank": 1, "layers": "first 1"},
    "rslora": USUAL | {"rank": 5, "alpha": 7, "rslora": True},
    "scale": USUAL | {"rank": 8, "scale": 20},
}
"""What every format can hold."""

DEMANDING = {"all linear": {"rank": 3, "alpha": 6}, "one leaf": {"targets": ("o_proj",)}}
"""What a format may refuse, by name."""


@pytest.fixture(scope="module")
def base(make_base):
    return make_base("llama")


def adapter_of(base, settings) -> Adapter:
    layout = choose_sites(base.sites, AdapterConfig(**settings))
    generator = torch.Generator().manual_seed(Key.of(1).value >> 1)
    return Adapter(layout, torch.randn(layout.size, generator=generator))


def written(name, adapter, directory, **options):
    FORMATS[name].write(adapter, directory, base_ref="llama", **options)
    return directory


def read(name, path, sites=None):
    return FORMATS[name].read(path, sites, scale=FORMATS[name].fixed_scale)


def update(adapter, site, transform=lambda factor: factor):
    """scale * B @ A of one site, [O, I] in double precision, of the factors or what they become."""
    a_rI, b_Or = (transform(factor.double()) for factor in adapter.sites[site])
    return adapter.layout.by_name[site].scale * (b_Or @ a_rI)


def assert_same_function(found, wanted):
    """Equal updates up to one rounding of every element of B."""
    assert list(found.sites) == list(wanted.sites)
    for site in wanted.sites:
        gap = (update(found, site) - update(wanted, site)).abs()
        assert (gap <= 2**-24 * 1.001 * update(wanted, site, torch.abs)).all()


@FILES
@pytest.mark.parametrize("settings", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("known", [True, False], ids=["base known", "base not known"])
def test_what_is_written_is_read_as_the_same_function(name, settings, known, base, tmp_path):
    adapter = adapter_of(base, settings)
    sites = base.sites if known else None
    loaded = read(name, written(name, adapter, tmp_path / "adapter", sites=sites), sites)
    assert_same_function(loaded.adapter, adapter)
    assert [s.site for s in loaded.adapter.layout.slots] == [s.site for s in adapter.layout.slots]
    assert loaded.format == name
    assert loaded.scale_from


@FILES
@pytest.mark.parametrize("settings", DEMANDING.values(), ids=DEMANDING)
def test_what_a_format_cannot_hold_is_refused_and_not_written(name, settings, base, tmp_path):
    adapter, place = adapter_of(base, settings), tmp_path / "adapter"
    try:
        written(name, adapter, place, sites=base.sites)
    except InputError as error:
        assert name == "npz"
        assert "o_proj" in str(error)
        assert list(tmp_path.iterdir()) == []
    else:
        assert_same_function(read(name, place, base.sites).adapter, adapter)


@FILES
def test_writing_what_was_read_gives_the_same_bytes(name, base, tmp_path):
    written(name, adapter_of(base, USUAL), tmp_path / "one")
    written(name, read(name, tmp_path / "one").adapter, tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@FILES
def test_a_format_knows_its_own_files_and_no_others(name, base, tmp_path):
    mine = written(name, adapter_of(base, USUAL), tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    file = max(mine.iterdir(), key=lambda file: file.stat().st_size)
    assert FORMATS[name].detect(mine)
    assert FORMATS[name].detect(file)
    assert not FORMATS[name].detect(tmp_path / "empty")
    assert not FORMATS[name].detect(tmp_path / "nowhere")
    assert detect_format(mine) is detect_format(file) is FORMATS[name]
    assert read_any(mine, base.sites, scale=2.5).format == name


@FILES
def test_a_file_is_known_by_its_content_whatever_it_is_called(name, base, tmp_path):
    mine = written(name, adapter_of(base, USUAL), tmp_path / "mine")
    file = max(mine.iterdir(), key=lambda file: file.stat().st_size)
    for other in ("adapters.safetensors", "adapter_model.safetensors", "adapters.npz"):
        file = file.rename(mine / other)
        assert detect_format(mine) is detect_format(file) is FORMATS[name]
        assert_same_function(
            read_any(mine, base.sites, scale=20).adapter,
            read_any(file, base.sites, scale=20).adapter,
        )


@FILES
def test_a_scale_that_is_given_goes_before_what_the_files_say(name, base, tmp_path):
    mine = written(name, adapter_of(base, USUAL), tmp_path / "mine")
    loaded = FORMATS[name].read(mine, base.sites, scale=3.25)
    assert {slot.scale for slot in loaded.adapter.layout.slots} == {3.25}
    assert loaded.scale_from == GIVEN
    assert any("3.25 was given" in note for note in loaded.notes)


@FILES
def test_the_same_adapter_is_the_same_bytes(name, base, tmp_path):
    for place in ("one", "two"):
        written(name, adapter_of(base, USUAL), tmp_path / place)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@FILES
def test_a_vector_in_training_is_written_as_plain_numbers(name, base, tmp_path):
    adapter = adapter_of(base, USUAL)
    trained = replace(adapter, flat=adapter.flat.double().requires_grad_())
    written(name, adapter, tmp_path / "one")
    for file in written(name, trained, tmp_path / "two").iterdir():
        assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes()


@FILES
@pytest.mark.parametrize("end", [0, 9, -100, -1])
def test_a_file_that_was_cut_short_is_an_error_that_names_it(name, end, base, tmp_path):
    mine = written(name, adapter_of(base, USUAL), tmp_path / "adapter")
    largest = max(mine.iterdir(), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:end])
    for path in (mine, largest):
        with pytest.raises(InputError, match=f"cannot read .*{largest.name}"):
            read(name, path, base.sites)
        with pytest.raises(InputError, match=f"cannot read .*{largest.name}"):
            read_any(path, base.sites)


@FILES
def test_an_adapter_of_another_base_is_refused(name, base, make_base, tmp_path):
    mine = written(name, adapter_of(base, USUAL), tmp_path / "adapter")
    with pytest.raises(InputError, match=r"does not fit the base:\n.*not a place"):
        read(name, mine, make_base("gpt2").sites)
    with pytest.raises(InputError, match=r"does not fit the base:\n.*expected \["):
        read(name, mine, make_base("llama", hidden_size=64).sites)


@FILES
def test_an_adapter_is_replaced_with_its_certificate_and_nothing_else_is(name, base, tmp_path):
    mine = written(name, adapter_of(base, USUAL), tmp_path / "adapter")
    (mine / "certificate.json").write_text("{}")
    names = {file.name for file in written(name, adapter_of(base, USUAL), mine).iterdir()}
    assert "certificate.json" not in names  # it was of the earlier one
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files too: thesis\.tex"):
        written(name, adapter_of(base, USUAL), mine)
    assert {file.name for file in mine.iterdir()} == names | {"thesis.tex"}


@FILES
def test_a_path_without_an_adapter_is_one_clear_error(name, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=str(path)):
            FORMATS[name].read(path, scale=1.0)


def test_what_is_in_no_format_is_told_with_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"it holds notes\.txt(.|\n)*adapters\.npz"):
        read_any(tmp_path)
    with pytest.raises(InputError, match="no such file or directory"):
        read_any(tmp_path / "nowhere")


def test_several_formats_in_one_directory_are_a_choice_for_the_reader(base, tmp_path):
    place = tmp_path / "both"
    place.mkdir()
    for name in FORMATS:
        for file in written(name, adapter_of(base, USUAL), tmp_path / name).iterdir():
            file.rename(place / file.name)
    with pytest.raises(InputError, match="several formats: mlx, npz, peft"):
        detect_format(place)
    assert read_any(place / "adapters.npz", scale=20).format == "npz"
