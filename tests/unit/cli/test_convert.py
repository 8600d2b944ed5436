"""`weft export` and `weft import`: the same function elsewhere, a certificate of it, or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import weft
from weft.core.files import sha256_file
from weft.core.keys import Key
from weft.formats import registry
from weft.formats.peft import write_adapter
from weft.formats.registry import FORMATS, read_any
from weft.model import merging
from weft.model.adapter import Adapter
from weft.model.base import Base, load_base
from weft.model.config import AdapterConfig
from weft.model.noise import uniform
from weft.model.sites import choose_sites

TENSORS = "adapter_model.safetensors"


@pytest.fixture(scope="session")
def last(tmp_path_factory, settings) -> Path:
    """A run whose adapter fits into every format: q_proj and v_proj, at scale 20."""
    root = tmp_path_factory.mktemp("runs") / "last"
    more = ["adapter.alpha=null", "adapter.scale=20", "adapter.targets=[q_proj,v_proj]"]
    weft.train("instruct", [*settings, *more, "steps=30", "optimiser.lr=2e-3"], root)
    return root


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below a directory."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def updates(path: Path) -> dict[str, torch.Tensor]:
    adapter = read_any(path, scale=None).adapter
    scales = {slot.site.name: slot.scale for slot in adapter.layout.slots}
    return {name: scales[name] * (b @ a).double() for name, (a, b) in adapter.sites.items()}


def loss(said) -> float:
    return json.loads(said.out)["eval_loss"]


def certificate(path: str) -> dict:
    return json.loads((Path(path) / "certificate.json").read_text())


@pytest.mark.parametrize("to", [*FORMATS, "merged"])
def test_an_exported_adapter_is_certified(cli, last, small_base, to):
    said = cli("export", last, "--to", to, "--out", "new/out")
    assert said.code == 0
    assert "same function  yes" in said.out and "next: " in said.err
    found = certificate("new/out")
    assert found["holds"] is True
    assert found["result"]["format"] == to
    assert found["base"]["ref"] == small_base
    manifest = json.loads((last / "manifest.json").read_text())
    assert found["base"]["sha256"] == manifest["fingerprints"]["base"]
    logits = found["logits"]
    assert logits["largest_difference"] <= logits["tolerance"] < logits["adapter_effect"] / 10
    assert logits["texts"] == 5 and logits["positions"] > 100
    assert {(s["source"]["rank"], s["source"]["scale"]) for s in found["sites"].values()} == (
        {(2, 20.0)}
    )
    assert set(found["result"]["files"]) | {"certificate.json"} == (
        {file.name for file in Path("new/out").iterdir()}
    )


@pytest.mark.parametrize("through", FORMATS)
def test_there_and_back_is_the_same_update(cli, last, small_base, through):
    assert cli("export", last, "--to", through, "--out", "there").code == 0
    assert cli("import", "there", "--out", "back", "--from", through).code == 0
    before, after = updates(last / "adapter"), updates(Path("back"))
    assert list(before) == list(after)
    for name, wanted in before.items():
        assert torch.equal(after[name], wanted)
    assert certificate("back")["logits"]["largest_difference"] == 0
    assert weft.inspect("back").base_ref == small_base


@pytest.mark.parametrize("through", FORMATS)
def test_every_verb_takes_every_format(cli, last, rows_dir, through):
    """Where the files leave the scale open, the certificate beside them says it."""
    cli("export", last, "--to", through, "--out", "there")
    data = f"{rows_dir}/valid.jsonl"
    own, other = (loss(cli("eval", ref, "--data", data, "--json")) for ref in (last, "there"))
    assert other == pytest.approx(own, rel=1e-6)
    said = cli("inspect", "there")
    assert said.code == 0
    assert f"format     {through}" in said.out and "scale      20 (" in said.out
    assert ("alpha" in said.out) == (through == "peft")
    assert cli("compare", last, "there", "--data", data, "--prompts", 0).code == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_merged_model_scores_like_base_and_adapter(cli, last, rows_dir, dtype):
    assert cli("export", last, "--to", "merged", "--out", "m", "--dtype", dtype).code == 0
    data = f"{rows_dir}/valid.jsonl"
    own = loss(cli("eval", last, "--data", data, "--json"))
    merged = loss(cli("eval", "base", "--base", "m", "--data", data, "--json"))
    alone = loss(cli("eval", "base", "--base", str(weft.inspect(last).base_ref), "--data", data,
                     "--json"))  # fmt: skip
    assert merged == pytest.approx(own, rel={"float32": 1e-6}.get(dtype, 0.02))
    assert abs(merged - own) < abs(alone - own) / 20
    found = certificate("m")
    assert found["result"]["dtype"] == dtype
    assert ("merging rounds" in found["logits"]["reason"]) == (dtype != "float32")


@pytest.mark.parametrize("to", ["peft", "mlx", "merged"])
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("gpt2", {"rslora": True, "alpha": 4.0}),
        ("mixtral", {"targets": ("q_proj", "v_proj", "mlp.gate"), "layers": "last 2"}),
    ],
)
def test_other_architectures(cli, make_model, small_base, architecture, settings, to):
    """Conv1D, a router and fused experts, rsLoRA, the last layers only."""
    shutil.copytree(small_base, "base", ignore=shutil.ignore_patterns("*.safetensors"))
    longest = {"gpt2": "n_positions"}.get(architecture, "max_position_embeddings")
    make_model(architecture, vocab_size=320, **{longest: 128}).save_pretrained("base")
    base = load_base("base")
    layout = choose_sites(base.sites, AdapterConfig(**settings))
    adapter = Adapter(layout, uniform((layout.size,), -0.3, 0.3, Key.of(0)))
    write_adapter(adapter, Path("adapter"), base_ref="base", sites=base.sites)
    said = cli("export", "adapter", "--to", to, "--out", "out")
    assert said.code == 0, said.err
    found = certificate("out")
    assert found["logits"]["largest_difference"] <= 1e-5 * found["logits"]["largest_logit"]
    assert found["logits"]["adapter_effect"] > 0.1
    assert len(found["sites"]) == len(layout.slots)


def test_the_base_is_as_it_was(cli, last, small_base):
    before = tree(Path(small_base))
    assert cli("export", last, "--to", "merged", "--out", "m").code == 0
    assert tree(Path(small_base)) == before
    assert certificate("m")["result"]["dtype"] == "float32"  # as the base's files


def test_an_earlier_conversion_is_replaced(cli, last):
    for to in ("mlx", "peft", "merged", "npz"):
        assert cli("export", last, "--to", to, "--out", "out").code == 0
        assert certificate("out")["result"]["format"] == to
    assert sorted(file.name for file in Path("out").iterdir()) == [
        "adapters.npz",
        "certificate.json",
    ]


def test_a_link_stays_one_and_its_directory_is_replaced(cli, last):
    Path("real").mkdir()
    Path("link").symlink_to("real")
    Path("dangling").symlink_to("made")
    for to in ("mlx", "npz"):
        for link in ("link", "dangling"):
            assert cli("export", last, "--to", to, "--out", link).code == 0
    assert {p.name for p in Path().iterdir()} == {"real", "link", "dangling", "made"}
    assert Path("link").is_symlink() and Path("dangling").is_symlink()
    for directory in ("real", "made"):
        assert {p.name for p in Path(directory).iterdir()} == {"adapters.npz", "certificate.json"}


def test_json_is_the_certificate(cli, last):
    said = cli("export", last, "--to", "mlx", "--out", "out", "--json")
    assert json.loads(said.out) == certificate("out")


def test_a_merge_that_rounding_swallows_is_not_kept(cli, last, tmp_path):
    weak = shutil.copytree(last / "adapter", tmp_path / "weak")
    tensors = load_file(weak / TENSORS)
    save_file({n: t * 1e-4 if "_B" in n else t for n, t in tensors.items()}, weak / TENSORS)
    before = tree(tmp_path)
    said = cli("export", weak, "--to", "merged", "--out", "a/b", "--dtype", "bfloat16")
    assert said.code == 1
    assert "is not the same function" in said.err and "--dtype float32" in said.err
    assert tree(tmp_path) == before
    assert cli("export", weak, "--to", "merged", "--out", "a/b", "--dtype", "float32").code == 0


def test_a_merge_that_forgets_one_place_is_found_out(cli, last, tmp_path, monkeypatch):
    """Also where the logits of a 16-bit model would not show it."""
    forgotten = "model.layers.0.self_attn.q_proj"
    update = merging.update
    monkeypatch.setattr(
        merging,
        "update",
        lambda adapter, site: update(adapter, site) * (site != forgotten),
    )
    before = tree(tmp_path)
    said = cli("export", last, "--to", "merged", "--out", "out", "--dtype", "bfloat16")
    assert said.code == 1
    assert f"which rounding does not explain at {forgotten}\n" in said.err
    assert "please report" in said.err
    assert tree(tmp_path) == before


def test_a_certificate_names_every_file_that_was_read(cli, last):
    """Of a single file of tensors also the configuration beside it, which has the scale."""
    file = last / "adapter" / TENSORS
    assert cli("export", file, "--to", "npz", "--out", "npz").code == 0
    source = certificate("npz")["source"]
    assert source["files"] == {
        name: sha256_file(file.with_name(name)) for name in (TENSORS, "adapter_config.json")
    }
    assert source["dtype"] is None  # it is the result that has one
    assert cli("import", "npz/adapters.npz", "--out", "back").code == 0
    assert certificate("back")["source"]["files"] == certificate("npz")["result"]["files"]


def test_a_writer_that_is_wrong_is_found_out(cli, last, tmp_path, monkeypatch):
    def wrong(adapter, directory, **rest):
        adapter = type(adapter)(adapter.layout, adapter.flat * 1.001)
        FORMATS["peft"].write(adapter, directory, **rest)

    broken = registry.Format("mlx", FORMATS["mlx"].detect, FORMATS["peft"].read, wrong)
    monkeypatch.setitem(registry.FORMATS, "mlx", broken)
    before = tree(tmp_path)
    said = cli("export", last / "adapter" / TENSORS, "--to", "mlx", "--out", "out")
    assert said.code == 1
    assert "updates differ by up to 0.002" in said.err
    assert tree(tmp_path) == before


def test_a_certificate_of_other_files_counts_for_nothing(cli, last):
    for to in ("mlx", "npz"):
        assert cli("export", last, "--to", to, "--out", to).code == 0
    tensors = load_file("mlx/adapters.safetensors")
    save_file({name: 2 * t for name, t in tensors.items()}, "mlx/adapters.safetensors")
    said = cli("inspect", "mlx")
    assert said.code == 0
    assert said.err == (
        "note: the certificate.json beside it was made for other files, and counts for nothing\n"
    )
    arrays = {name: 2 * value for name, value in np.load("npz/adapters.npz").items()}
    np.savez("npz/adapters.npz", **arrays)
    assert "does not say which base" in cli("import", "npz", "--out", "out").err


def test_the_base_is_hashed_once(cli, last, monkeypatch):
    calls = []
    digest = Base.fingerprint
    monkeypatch.setattr(Base, "fingerprint", lambda base: calls.append(1) or digest(base))
    assert cli("export", last, "--to", "merged", "--out", "out").code == 0
    assert calls == [1]


def test_a_hash_in_another_dtype_is_not_compared(cli, last, tmp_path):
    copy = shutil.copytree(last, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["config"]["dtype"] = "bfloat16"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    said = cli("export", copy, "--to", "mlx", "--out", "out")
    assert said.code == 0
    assert "was taken in bfloat16, and the base is loaded in float32" in said.err
    assert "bfloat16" in certificate("out")["notes"][0]


@pytest.fixture
def bare(cli, last):
    """An npz as mlx-examples leaves it: factors, and nothing that says scale or base."""
    assert cli("export", last, "--to", "npz", "--out", "npz").code == 0
    Path("npz/certificate.json").unlink()
    return "npz/adapters.npz"


def test_data_choose_the_scale(cli, bare, small_base, rows_dir):
    data = f"{rows_dir}/train.jsonl"
    said = cli("import", bare, "--out", "out", "--base", small_base, "--scale", "auto",
               "--data", data)  # fmt: skip
    assert said.code == 0
    lines = [line.split() for line in said.out.splitlines()[:4]]
    assert lines[1][0] == "20," and "best" in lines[1]
    assert lines[2][0] == "2," and lines[3][:3] == ["the", "base", "alone"]
    found = certificate("out")
    assert "the lowest loss of 2 scales on 40 rows" in found["scale_from"]
    choice = found["scale_choice"]
    assert (choice["examples"], choice["data"]) == (40, data)
    first, second = choice["candidates"]
    assert (first["scale"], second["scale"]) == (20.0, 2.0)
    assert 0 < second["above_best"]["low"] < second["above_best"]["high"]
    assert second["above_best"]["estimate"] == pytest.approx(second["loss"] - first["loss"])
    assert found["logits"]["texts"] == 5 + 8
    own = loss(cli("eval", "out", "--data", data, "--json"))
    assert own == pytest.approx(first["loss"], rel=1e-6)
    assert choice["base_loss"] > first["loss"]


def test_rows_that_cannot_tell_choose_nothing(cli, bare, small_base, rows_dir, tmp_path):
    row = Path(rows_dir, "train.jsonl").read_text().splitlines()[0]
    Path("one.jsonl").write_text(row + "\n")
    before = tree(tmp_path)
    said = cli("import", bare, "--out", "out", "--base", small_base, "--scale", "auto",
               "--data", "one.jsonl")  # fmt: skip
    assert said.code == 1
    assert "the 1 rows of one.jsonl do not tell the scales" in said.err
    assert "20: loss " in said.err and "the base alone: loss " in said.err
    assert tree(tmp_path) == before


def test_an_adapter_that_overflows_is_not_called_another_function(cli, last, tmp_path):
    large = shutil.copytree(last / "adapter", tmp_path / "large")
    tensors = load_file(large / TENSORS)
    save_file({n: t * 1e30 for n, t in tensors.items()}, large / TENSORS)
    before = tree(tmp_path)
    said = cli("export", large, "--to", "mlx", "--out", "out")
    assert said.code == 1
    assert "the base gives logits that are not finite" in said.err
    assert tree(tmp_path) == before


def test_rows_on_which_the_adapter_does_harm_choose_nothing(cli, bare, small_base, tmp_path):
    rows = [{"prompt": "small red", "completion": f" mat {n} dog dog"} for n in range(12)]
    Path("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arrays = {n: -a if n.endswith("b") else a for n, a in np.load(bare).items()}
    np.savez("harmful.npz", **arrays)
    before = tree(tmp_path)
    said = cli("import", "harmful.npz", "--out", "out", "--base", small_base, "--scale", "auto",
               "--data", "other.jsonl")  # fmt: skip
    assert said.code == 1
    assert "does no better than the base alone at any of them" in said.err
    assert tree(tmp_path) == before


def test_a_given_scale_is_used_and_said(cli, bare, small_base):
    said = cli("import", bare, "--out", "out", "--base", small_base, "--scale", 2)
    assert said.code == 0
    assert certificate("out")["scale_from"] == "given with --scale"
    assert {slot.scale for slot in read_any(Path("out")).adapter.layout.slots} == {2.0}
    odd = cli("import", bare, "--out", "odd", "--base", small_base, "--scale", 7)
    assert "note: the scale 7 was given" in odd.err


def test_auto_uses_the_scale_of_the_files(cli, last, rows_dir):
    said = cli("import", last / "adapter", "--out", "out", "--scale", "auto",
               "--data", f"{rows_dir}/valid.jsonl")  # fmt: skip
    assert said.code == 0
    assert "the files determine the scale, and nothing was scored" in said.err
    assert certificate("out")["scale_choice"] is None


CASES = [
    # command, what the problem says, what the hint says
    ("export nowhere --to peft --out new", "there is no nowhere", "adapter"),
    ("import nowhere --out new", "there is no nowhere", "adapter"),
    ("export {rows} --to peft --out new", "is not an adapter, a run or a base", "manifest.json"),
    ("export base --to peft --out new", "is a base", "an adapter or a run"),
    ("export {all} --to pfet --out new", "no format 'pfet'", "did you mean `peft`?"),
    ("export {all} --to gguf --out new", "no format 'gguf'", "peft, merged"),
    ("export {all} --out new", "--to says what to write", "peft, mlx, npz or merged"),
    ("export {all} --to peft", "--out says where", "--out DIR"),
    ("export {all} --to npz --out a/new", "has others too", "mlx"),
    ("export {all} --to mlx --out {full}", "exists and holds other files: mine", "not exist"),
    ("export {all} --to merged --out {full}", "exists and holds other files: mine", "not exist"),
    ("export {all} --to mlx --out {full}/mine", "is a file", "does not exist"),
    ("export {all} --to mlx --out {full}/mine/a/b", "{full}/mine is a file", "does not exist"),
    ("export {all} --to mlx --out .", "the directory that you are in", "does not exist"),
    ("export {all} --to merged --base {model} --out {model}", "the base {model} lies", "another"),
    ("export {done} --to mlx --out {done}", "would be replaced", "another directory"),
    ("export {all} --to mlx --out new --dtype bfloat16", "--dtype is for merged", "leave"),
    ("export {all} --to merged --out new --dtype bf16", "no dtype 'bf16'", "bfloat16"),
    ("export {several} --to peft --out new", "has 2 adapters", "members/seed-1"),
    ("export {all} --to peft --out new --base {small}", "does not fit the base", "trained on"),
    ("export {all} --to peft --out new --base {other}", "has sha256 {hash}", "--base"),
    ("eval {all} --base {other}", "has sha256 {hash}", "--base"),
    ("import {done} --out new --base {other}", "certificate.json says that its base", "--base"),
    ("export {all} --to peft --out new --base weft/tny", "no bundled base", "weft/tiny"),
    ("import {all}/adapter --out new --from mlx", "in the format peft", "leave --from out"),
    ("import {npz} --out new --from mxl", "no format 'mxl'", "did you mean `mlx`?"),
    ("import {torn} --out new", "cannot read", "fetch it again"),
    ("import {lone} --out new", "has no adapter_config.json beside it", "two files"),
    ("import {lone} --out new --base {base}", "has no adapter_config.json beside it", "two files"),
    ("import {odd} --out new --base {base}", "adapter_config.json: Is a directory", None),
    ("import {full}/mine --out new", "it is a file of no factors that Weft knows", "PEFT"),
    ("import {tornnpz} --out new --base {base}", "cannot read", "fetch it again"),
    ("import {pickled} --out new --base {base} --scale 20", "pickled", "opens no pickles"),
    ("import {bin} --out new", "a pickle file", "opens no pickles"),
    ("import {npz} --out new", "does not say which base", "--base"),
    ("import {npz} --out new --base {base}", "does not say at which scale", "--scale NUMBER"),
    ("eval {npz} --base {base} --task instruct", "20: the constant of mlx-", "weft import {npz}"),
    ("inspect {npz} --base {base}", "does not say at which scale", "weft import {npz}"),
    ("import {npz} --out new --base {base} --scale auto", "needs rows", "--data FILE"),
    ("import {npz} --out new --base {base} --scale x", "must be a number or `auto`", "20"),
    ("import {npz} --out new --base {base} --scale nan", "must be a positive number", "alpha"),
    ("import {npz} --out new --base {base} --scale -2", "must be a positive number", "alpha"),
    ("import {npz} --out new --base {base} --scale 20 --data no.jsonl", "no file or folder", None),
    ("import {dora} --out new", "is the magnitude of DoRA", "merge it"),
    ("import {bias} --out new", "is the bias of `lora_bias`", "merge it"),
    ("import {saved} --out new", "replaces a weight of the base", "merge it"),
    ("import {pissa} --out new", "changes the base weights", "merge it"),
]


@pytest.fixture(scope="session")
def places(tmp_path_factory, run, last, small_base, rows_dir):
    """What the cases name: adapters that are sound, broken, or more than LoRA."""
    root = tmp_path_factory.mktemp("places")
    adapter = run / "adapter"

    def changed(name, tensors=(), **config):
        path = shutil.copytree(adapter, root / name)
        found = load_file(path / TENSORS) | dict(tensors)
        save_file(found, path / TENSORS, metadata={"format": "pt"})
        fields = json.loads((path / "adapter_config.json").read_text()) | config
        (path / "adapter_config.json").write_text(json.dumps(fields))
        return path

    several = shutil.copytree(run, root / "several")
    for member in ("seed-0", "seed-1"):
        shutil.copytree(adapter, several / "members" / member / "adapter")
    (root / "full").mkdir()
    (root / "full" / "mine").write_text("keep")
    weft.export_adapter(last, "npz", root / "npz")
    npz = root / "npz" / "adapters.npz"
    (root / "npz" / "certificate.json").unlink()
    torn, tornnpz = changed("torn"), root / "tornnpz" / "adapters.npz"
    tornnpz.parent.mkdir()
    (torn / TENSORS).write_bytes((torn / TENSORS).read_bytes()[:-100])
    tornnpz.write_bytes(npz.read_bytes()[:-100])
    for name in ("lone", "odd"):
        shutil.copytree(adapter, root / name)
        (root / name / "adapter_config.json").unlink()
    (root / "odd" / "adapter_config.json").mkdir()
    shutil.copytree(adapter, root / "bin")
    (root / "bin" / TENSORS).rename(root / "bin" / "adapter_model.bin")
    name = "model.layers.0.self_attn.q_proj.lora_a"
    np.savez(root / "pickled.npz", **{name: np.array([{"a": 1}], dtype=object)})
    weft.export_adapter(run, "peft", root / "done")
    weft.export_adapter(run, "merged", root / "model")
    other = shutil.copytree(small_base, root / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    manifest = json.loads((run / "manifest.json").read_text())
    return {
        "all": run, "rows": rows_dir, "base": small_base, "small": "weft/tiny", "other": other,
        "several": several, "full": root / "full", "npz": npz, "torn": torn, "tornnpz": tornnpz,
        "model": root / "model", "bin": root / "bin", "pickled": root / "pickled.npz",
        "lone": root / "lone", "odd": root / "odd", "done": root / "done",
        "hash": manifest["fingerprints"]["base"][:12],
        "dora": changed("dora", {f"{prefix}.lora_magnitude_vector": torch.ones(32)}, use_dora=True),
        "bias": changed("bias", {f"{prefix}.lora_B.bias": torch.ones(32)}, lora_bias=True),
        "saved": changed("saved", {"base_model.model.lm_head.weight": torch.ones(320, 32)},
                         modules_to_save=["lm_head"]),
        "pissa": changed("pissa", init_lora_weights="pissa"),
    }  # fmt: skip


@pytest.mark.parametrize(("command", "problem", "hint"), CASES, ids=[case[0] for case in CASES])
def test_a_mistake_is_explained_and_leaves_nothing(cli, places, tmp_path, command, problem, hint):
    root = Path(places["full"]).parent
    before = tree(root), tree(tmp_path)
    said = cli(*command.format(**places).split())
    assert said.code == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    told, _, hinted = said.err.partition("\n\nhint: ")
    assert told.startswith("error: ")
    assert problem.format(**places) in told
    assert (hint or "").format(**places) in hinted
    assert (tree(root), tree(tmp_path)) == before
