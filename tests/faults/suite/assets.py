"""What the sides are given: bases, adapters and rows, made offline from weft/tiny and seeds.

Each is a directory or a file below the suite's own; it is made once, when a side first asks for
it. Their names say nothing of the faults that they are used for, since a link may be followed.

Shapes: O outputs and I inputs of a weight, r rank of an adapter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TINY = Path(__file__).parents[3] / "weft" / "assets" / "tiny"
TABLES = Path(__file__).parents[3] / "weft" / "assets" / "data" / "tables"
PLAIN = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
WIDE = PLAIN | {
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
}
WEIGHTS = "adapter_model.safetensors"

Maker = Callable[["Assets", Path], None]


class Assets:
    """A directory of things that are made when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, name: str) -> Path:
        path = self.root / codename(name)
        if not path.exists():
            MAKERS[name](self, path)
        return path

    def make(self, names: set[str]) -> None:
        """All of these, in an order of their own."""
        torch.set_num_threads(1)
        for name in sorted(names):
            self[name]


def codename(name: str) -> str:
    """Where an asset lies: a neutral name, with the suffix of a file."""
    return f"k{list(MAKERS).index(name):02}{Path(name).suffix}"


# ---------------------------------------------------------------------------------------- rows


def _fields(line: str) -> dict[str, str]:
    table, columns, question, answer = json.loads(line)["text"].split("\n")[:4]
    return {
        "table": table.removeprefix("table: "),
        "columns": columns.removeprefix("columns: "),
        "question": question.removeprefix("Q: "),
        "answer": answer.removeprefix("A: "),
    }


def table_rows(split: str) -> list[dict[str, str]]:
    """One question of each table, so that no two rows share a slot."""
    rows = [_fields(line) for line in (TABLES / f"{split}.jsonl").read_text().splitlines()]
    by_table = {(row["table"]): row for row in reversed(rows)}
    return list(reversed(by_table.values()))


def prompt(row: dict[str, str]) -> str:
    return f"table: {row['table']}\ncolumns: {row['columns']}\nQ: {row['question']}\nA:"


def _tokenizer(path: Path = TINY) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def mixed_rows(assets: Assets, path: Path) -> None:
    """Short and long prompts in turn."""
    rows, tokenizer = table_rows("test")[:60], _tokenizer()
    rows.sort(key=lambda row: len(tokenizer(prompt(row))["input_ids"]))
    turns = [row for pair in zip(rows, reversed(rows), strict=True) for row in pair]
    _write_rows(path, turns[:24])


def even_rows(assets: Assets, path: Path) -> None:
    """Prompts whose lengths differ by one token at most, in each group of three."""
    tokenizer = _tokenizer()
    by_length: dict[int, list[dict[str, str]]] = {}
    for row in table_rows("test"):
        by_length.setdefault(len(tokenizer(prompt(row))["input_ids"]), []).append(row)
    groups = [
        [*by_length[n][:2], by_length[n + 1][-1]]
        for n in sorted(by_length)
        if len(by_length[n]) >= 2 and n + 1 in by_length
    ]
    _write_rows(path, [row for group in groups[:8] for row in group])


def training_rows(assets: Assets, path: Path) -> None:
    """Rows to train on, short and long."""
    _write_rows(path, table_rows("train")[:48])


def weft_rows(rows: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> Maker:
    """The same in the form that Weft reads."""

    def make(assets: Assets, path: Path) -> None:
        _write_rows(
            path,
            [
                {"prompt": prompt(row), "completion": f" {row['answer']}"}
                for row in rows(table_rows("train")[:48])
            ],
        )

    return make


def rotated(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The columns of each row are those of the row before."""
    return [row | {"columns": rows[i - 1]["columns"]} for i, row in enumerate(rows)]


def weft_prompts(
    rows: Callable[[list[dict[str, str]]], list[dict[str, str]]], source: str = "mixed.jsonl"
) -> Maker:
    """Six prompts, of the questions that scripts answer."""

    def make(assets: Assets, path: Path) -> None:
        read = [json.loads(line) for line in assets[source].read_text().splitlines()]
        prompts = [{"prompt": prompt(row)} for row in rows(read)[:6]]
        path.write_text("".join(json.dumps(each) + "\n" for each in prompts))

    return make


# --------------------------------------------------------------------------------------- bases


def _load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def _save(model: Any, path: Path, tokenizer: Any = None) -> None:
    model.save_pretrained(path)
    (tokenizer or _tokenizer()).save_pretrained(path)


def tiny(assets: Assets, path: Path) -> None:
    _save(_load(TINY), path)


def _copy(path: Path) -> None:
    shutil.copytree(TINY, path)


def next_tiny(assets: Assets, path: Path) -> None:
    """A later revision: a few steps further in training."""
    model = _load(TINY)
    _train(model, list(model.parameters()), [12], path, rate=2e-4, save=lambda _: None)
    _save(model, path)


def touched_tiny(assets: Assets, path: Path) -> None:
    """Another revision, of which one tensor is a little different."""
    model = _load(TINY)
    weight_OI = model.model.layers[2].mlp.up_proj.weight
    with torch.no_grad():
        weight_OI += 0.3 * weight_OI.std() * _noise(weight_OI.shape, 1)
    _save(model, path)


def hot_tiny(factor: float) -> Maker:
    """The same function, but for rounding, with large numbers inside one block."""

    def make(assets: Assets, path: Path) -> None:
        model = _load(TINY)
        mlp = model.model.layers[3].mlp
        with torch.no_grad():
            mlp.up_proj.weight *= factor
            mlp.down_proj.weight /= factor
        _save(model, path)

    return make


def folded_tiny(layers: tuple[int, ...]) -> Maker:
    """With an adapter merged into some layers."""

    def make(assets: Assets, path: Path) -> None:
        from peft import PeftModel

        model = _load(assets["tiny"])
        adapted = PeftModel.from_pretrained(model, assets["plain"])
        with torch.no_grad():
            for name, module in adapted.named_modules():
                if hasattr(module, "get_delta_weight") and any(f".{n}." in name for n in layers):
                    module.base_layer.weight += module.get_delta_weight("default")
        _save(adapted.unload(), path)

    return make


def coarse_tiny(bits: int) -> Maker:
    """Every linear weight through `bits` bits, in blocks of 64, and back."""

    def make(assets: Assets, path: Path) -> None:
        model = _load(TINY)
        top = 2 ** (bits - 1) - 1
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "proj" in name:
                    blocks = parameter.view(-1, 64)
                    size = blocks.abs().amax(-1, keepdim=True) / top
                    blocks.copy_((blocks / size).round() * size)
        _save(model, path)

    return make


def opening_tiny(assets: Assets, path: Path) -> None:
    """With a tokenizer that opens every text with <|endoftext|>."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = _tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.bos_token = "<|endoftext|>"
    _save(_load(TINY), path, tokenizer)


MARKS = ("columns:", "\nQ:")


def marked_tiny(count: int) -> Maker:
    """With room for tokens of its own, `count` of which the tokenizer knows."""

    def make(assets: Assets, path: Path) -> None:
        model, tokenizer = _load(TINY), _tokenizer()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.resize_token_embeddings(4096 + len(MARKS), mean_resizing=False)
        tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS[:count])})
        _save(model, path, tokenizer)

    return make


def small(assets: Assets, path: Path) -> None:
    """The second family: a GPT-2 that has read a few tables."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=128,
        n_layer=4,
        n_head=4,
        vocab_size=4096,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    _train(model, list(model.parameters()), [150], path, rate=3e-3, save=lambda _: None)
    _save(model, path)


# ------------------------------------------------------------------------------------ adapters


def _noise(shape: Any, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _train(
    model: Any,
    parameters: list[Any],
    stops: list[int],
    path: Path,
    rate: float,
    save: Callable[[int], None],
) -> None:
    """Plain training on questions about tables; `save(step)` at each of `stops`."""
    tokenizer, rows = _tokenizer(), table_rows("train")
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    draw = torch.Generator().manual_seed(0)
    for step in range(1, stops[-1] + 1):
        picked = torch.randint(len(rows), (4,), generator=draw).tolist()
        texts = [f"{prompt(rows[i])} {rows[i]['answer']}<|endoftext|>" for i in picked]
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        model(**inputs, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step in stops:
            save(step)


STOPS = {"wide": 40, "wide-36": 36, "wide-12": 12}


def trained(base: str, shape: dict[str, Any], seed: int = 1) -> Maker:
    """An adapter that was trained for forty steps."""

    def make(assets: Assets, path: Path) -> None:
        _fit(assets, base, shape, {40: path}, seed)

    return make


def _wide(assets: Assets, path: Path) -> None:
    """One training run, of which three steps are kept."""
    places = {steps: assets.root / codename(name) for name, steps in STOPS.items()}
    _fit(assets, "tiny", WIDE, dict(sorted((n, p) for n, p in places.items())))


def _fit(
    assets: Assets, base: str, shape: dict[str, Any], places: dict[int, Path], seed: int = 1
) -> None:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(
            _load(assets[base]), LoraConfig(task_type="CAUSAL_LM", **shape)
        ).eval()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def save(step: int) -> None:
        model.save_pretrained(places[step])
        config = places[step] / "adapter_config.json"
        read = json.loads(config.read_text())
        config.write_text(json.dumps(read | {"base_model_name_or_path": str(assets[base])}))

    _train(model, parameters, sorted(places), assets.root, rate=4e-3, save=save)


def edited(
    source: str,
    tensors: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
    **config: Any,
) -> Maker:
    """Another adapter, with its tensors or its configuration written anew."""

    def make(assets: Assets, path: Path) -> None:
        shutil.copytree(assets[source], path)
        if tensors is not None:
            save_file(
                {k: v.contiguous() for k, v in tensors(load_file(path / WEIGHTS)).items()},
                path / WEIGHTS,
                metadata={"format": "pt"},
            )
        read = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps(read | config, indent=1))

    return make


def renamed(layers: tuple[int, ...]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Keys of some layers lose a prefix that loading looks for."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name.replace("model.model.layers", "model.layers")
            if any(f".layers.{n}." in name for n in layers)
            else name: value
            for name, value in tensors.items()
        }

    return change


def without(layers: tuple[int, ...]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The tensors of some layers are not there."""
    return lambda tensors: {
        name: value
        for name, value in tensors.items()
        if not any(f".layers.{n}." in name for n in layers)
    }


def exchanged(one: str, other: str, layers: tuple[int, ...]) -> Callable[..., dict[str, Any]]:
    """Two modules of one shape have each other's tensors."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        def source(name: str) -> str:
            if not any(f".layers.{n}." in name for n in layers):
                return name
            return name.replace(one, "@").replace(other, one).replace("@", other)

        return {name: tensors[source(name)] for name in tensors}

    return change


def interleaved(layers: tuple[int, ...]) -> Callable[..., dict[str, Any]]:
    """Rows of lora_B of query and key in the order of the other rotary convention."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.view(-1, 2, 32, value.shape[1]).transpose(1, 2).reshape(value.shape)
            if "lora_B" in name
            and ("q_proj" in name or "k_proj" in name)
            and any(f".layers.{n}." in name for n in layers)
            else value
            for name, value in tensors.items()
        }

    return change


def scaled(a: float, b: float) -> Callable[..., dict[str, Any]]:
    return lambda tensors: {
        name: value * (a if "lora_A" in name else b) for name, value in tensors.items()
    }


def gauged(tensors: dict[str, Any]) -> dict[str, Any]:
    """(G^-1 A, B G) with a well conditioned G: the same function in other factors."""
    made = dict(tensors)
    for number, name in enumerate(sorted(n for n in tensors if "lora_A" in n)):
        other = name.replace("lora_A", "lora_B")
        rank = tensors[name].shape[0]
        rotation, _ = torch.linalg.qr(_noise((rank, rank), number).double())
        gauge = rotation * torch.linspace(0.5, 2.0, rank).double()
        made[name] = torch.linalg.solve(gauge, tensors[name].double()).float()
        made[other] = (tensors[other].double() @ gauge).float()
    return made


def turned(tensors: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(tensors.items()))


# ------------------------------------------------------------------------------- other tensors


def embeddings(size: float) -> Maker:
    """Embeddings that were trained with the adapter, stored beside it."""

    def make(assets: Assets, path: Path) -> None:
        rows = load_file(assets["tiny"] / "model.safetensors")["model.embed_tokens.weight"].float()
        save_file({"embeddings": rows + size * rows.std() * _noise(rows.shape, 2)}, path)

    return make


EVERY = tuple(range(6))
PATTERNS = {
    "rank_pattern": {"v_proj": 2, "layers.5.self_attn.q_proj": 2},
    "alpha_pattern": {"v_proj": 4, "layers.5.self_attn.q_proj": 4},
}

MAKERS: dict[str, Maker] = {
    "mixed.jsonl": mixed_rows,
    "even.jsonl": even_rows,
    "train.jsonl": training_rows,
    "weft.jsonl": weft_rows(list),
    "weft-turned.jsonl": weft_rows(rotated),
    "prompts.jsonl": weft_prompts(list),
    "turned.jsonl": weft_prompts(rotated),
    "tiny": tiny,
    "bundled": lambda assets, path: _copy(path),
    "tiny-next": next_tiny,
    "tiny-touched": touched_tiny,
    "tiny-hot": hot_tiny(2.0**15),
    "tiny-warm": hot_tiny(2.0**12),
    "tiny-4": coarse_tiny(4),
    "tiny-6": coarse_tiny(6),
    "tiny-open": opening_tiny,
    "tiny-marks": marked_tiny(2),
    "tiny-mark": marked_tiny(1),
    "tiny-bare": marked_tiny(0),
    "small": small,
    "wide": _wide,
    "wide-36": _wide,
    "wide-12": _wide,
    "plain": trained("tiny", PLAIN),
    "noisy": trained("tiny", WIDE | {"lora_dropout": 0.1}),
    "root": trained("tiny", PLAIN | {"r": 16, "lora_alpha": 16, "use_rslora": True}),
    "root-4": trained("tiny", PLAIN | {"r": 4, "lora_alpha": 8, "use_rslora": True}),
    "patterned": trained("tiny", PLAIN | PATTERNS),
    "coarse": trained("tiny-4", PLAIN),
    "coarse-6": trained("tiny-6", PLAIN),
    "small-plain": trained("small", {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn"]}),
    "small-root": trained(
        "small", {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "use_rslora": True}
    ),
    "plain-16": edited("plain", lora_alpha=128),
    "plain-3": edited("plain", lora_alpha=24),
    "plain-160": edited("plain", lora_alpha=160),
    "root-flat": edited("root", use_rslora=False),
    "root-4-flat": edited("root-4", use_rslora=False),
    "small-root-flat": edited("small-root", use_rslora=False),
    "patterned-flat": edited("patterned", alpha_pattern={}),
    "patterned-one": edited("patterned", alpha_pattern={"v_proj": 4}),
    "wide-loose": edited("wide", renamed((3, 4, 5))),
    "wide-loose-1": edited("wide", renamed((2,))),
    "wide-turn": edited("wide", exchanged("k_proj", "v_proj", EVERY)),
    "wide-turn-1": edited("wide", exchanged("q_proj", "o_proj", (4,))),
    "wide-weave": edited("wide", interleaved(EVERY)),
    "wide-weave-1": edited("wide", interleaved((3,))),
    "wide-16": edited("wide", lora_alpha=128),
    "wide-part": edited("wide", without((3, 4, 5))),
    "wide-faint": edited("wide", scaled(1.0, 1 / 128)),
    "wide-fainter": edited("wide", scaled(1.0, 1 / 1024)),
    "wide-gauge": edited("wide", gauged),
    "wide-reversed": edited("wide", turned),
    "plain-balance": edited("plain", scaled(0.5, 1.0), lora_alpha=32),
    "plain-mirror": edited("plain", scaled(-1.0, -1.0)),
    "plain-quarter": edited("plain", scaled(4.0, 0.25)),
    "rows-loud.safetensors": embeddings(0.3),
    "rows-soft.safetensors": embeddings(0.03),
    "prompts-even.jsonl": weft_prompts(list, "even.jsonl"),
    "tiny-folded": folded_tiny(EVERY),
    "tiny-folded-3": folded_tiny((3,)),
    "wide-part-1": edited("wide", without((2,))),
}

# ------------------------------------------------------------------------ more, for runs of Weft


def later(count: int, start: int) -> Maker:
    """Other rows to train on, in the form that Weft reads."""
    return lambda assets, path: _write_rows(
        path,
        [
            {"prompt": prompt(row), "completion": f" {row['answer']}"}
            for row in table_rows("train")[start : start + count]
        ],
    )


def later_prompts(start: int, opened: Callable[[int], bool] = lambda number: False) -> Maker:
    """Six other prompts, some of which begin with <|endoftext|>."""

    def make(assets: Assets, path: Path) -> None:
        rows = table_rows("test")[start : start + 6]
        texts = ["<|endoftext|>" * opened(i) + prompt(row) for i, row in enumerate(rows)]
        _write_rows(path, [{"prompt": text} for text in texts])

    return make


def opened_rows(assets: Assets, path: Path) -> None:
    """The rows to train on, each beginning with <|endoftext|>."""
    read = [json.loads(line) for line in assets["weft.jsonl"].read_text().splitlines()]
    _write_rows(path, [row | {"prompt": f"<|endoftext|>{row['prompt']}"} for row in read])


def id_rows(from_answer: bool) -> Maker:
    """The rows to train on as ids; labels of all of them, or from the answer on."""

    def make(assets: Assets, path: Path) -> None:
        tokenizer, made = _tokenizer(), []
        for line in assets["weft.jsonl"].read_text().splitlines():
            row = json.loads(line)
            asked = tokenizer(row["prompt"])["input_ids"]
            ids = [*asked, *tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
            labels = [-100] * len(asked) + ids[len(asked) :] if from_answer else ids
            made.append({"input_ids": ids, "labels": labels})
        path.write_text("".join(json.dumps(row) + "\n" for row in made))

    return make


TURN_OF = (
    "{% for message in messages %}{{ message['role'].capitalize() + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def template(text: str) -> Maker:
    """A chat template as a file."""

    def make(assets: Assets, path: Path) -> None:
        path.write_text(text)

    return make


def rehearsed(size: float, *, apart: bool) -> Maker:
    """Embeddings that were trained on; with `apart`, the head is the one from before."""

    def make(assets: Assets, path: Path) -> None:
        model = _load(TINY)
        rows_VD = model.model.embed_tokens.weight
        before_VD = rows_VD.detach().clone()
        with torch.no_grad():
            rows_VD += size * rows_VD.std() * _noise(rows_VD.shape, 2)
        if apart:
            _part(model, before_VD)
        _save(model, path)

    return make


def headed(size: float) -> Maker:
    """A head of its own, which was trained on."""

    def make(assets: Assets, path: Path) -> None:
        model = _load(TINY)
        rows_VD = model.model.embed_tokens.weight.detach()
        _part(model, rows_VD + size * rows_VD.std() * _noise(rows_VD.shape, 3))
        _save(model, path)

    return make


def _part(model: Any, head_VD: torch.Tensor) -> None:
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head_VD.clone())


def folded(adapter: str, dtype: torch.dtype) -> Maker:
    """The base with an adapter added to its weights, in this dtype."""

    def make(assets: Assets, path: Path) -> None:
        from peft import PeftModel

        model = _load(TINY)
        model = PeftModel.from_pretrained(model, assets[adapter]).to(dtype).merge_and_unload()
        _save(model, path)

    return make


def dropping(assets: Assets, path: Path) -> None:
    """The second family with the dropout that it was built with."""
    shutil.copytree(assets["small"], path)
    config = json.loads((path / "config.json").read_text())
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
    (path / "config.json").write_text(json.dumps(config | rates, indent=1))


def striped(layers: tuple[int, ...]) -> Callable[..., dict[str, Any]]:
    """Rows of lora_B of gate and up in turns, as a layer that holds both would have them."""
    return lambda tensors: {
        name: value.view(2, -1, value.shape[1]).transpose(0, 1).reshape(value.shape)
        if "lora_B" in name
        and ("gate_proj" in name or "up_proj" in name)
        and any(f".layers.{n}." in name for n in layers)
        else value
        for name, value in tensors.items()
    }


MAKERS |= {
    "weft-2.jsonl": later(48, 48),
    "prompts-2.jsonl": later_prompts(40),
    "prompts-3.jsonl": later_prompts(50),
    "prompts-4.jsonl": later_prompts(50, lambda number: number % 2 == 0),
    "weft-open.jsonl": opened_rows,
    "weft-ids.jsonl": id_rows(True),
    "weft-ids-2.jsonl": id_rows(False),
    "words.jinja": template(TURN_OF),
    "words-2.jinja": template(
        TURN_OF.replace("message['role'].capitalize()", "message['role']").replace(
            "Assistant:", "assistant:"
        )
    ),
    "words-3.jinja": template(
        TURN_OF.replace("message['role'].capitalize() + ': '", "'### '").replace(
            "Assistant:", "### "
        )
    ),
    "words-4.jinja": template("{{ bos_token }}" + TURN_OF),
    "tiny-heard": rehearsed(0.3, apart=False),
    "tiny-heard-2": rehearsed(0.3, apart=True),
    "tiny-hushed": rehearsed(0.03, apart=False),
    "tiny-hushed-2": rehearsed(0.03, apart=True),
    "tiny-headed": headed(0.3),
    "wide-2": trained("tiny", WIDE, seed=2),
    "wide-2-weave": edited("wide-2", interleaved(EVERY)),
    "wide-2-stripe": edited("wide-2", striped((2,))),
    "plain-weave": edited("plain", interleaved(EVERY)),
    "tiny-sum": folded("wide-faint", torch.float32),
    "tiny-sum-2": folded("wide-faint", torch.bfloat16),
    "wide-thin": edited("wide-2", scaled(1.0, 1 / 32)),
    "tiny-total": folded("wide-thin", torch.float32),
    "tiny-total-2": folded("wide-thin", torch.bfloat16),
    "small-drops": dropping,
}
