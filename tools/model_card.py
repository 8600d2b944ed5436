"""Write the model card of the bundled base: `python -m tools.model_card --agreement "..."`.

Numbers come from the training log and the corpus recipe, samples from the model itself. What a
later step has filled in at the task table is kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file

from tools.corpus.build import RECIPE
from tools.sample import MODEL, sample

START, STOP = "<!-- task-table -->", "<!-- /task-table -->"
EMPTY_TABLE = """
| task | metric | base | tuned | settings |
|---|---|---|---|---|
| instruct | held-out loss | | | |
| tables | exact match | | | |
| reviews | accuracy | | | |
"""
SAMPLES = (
    # prompt, temperature
    ("Once there was a", 0.7),
    ("Q: What is the opposite of hot?\nA:", 0.0),
    ("Lena: Good morning, Otto.\nOtto:", 0.7),
    ("Make 24 out of 2, 3 and 4:", 0.0),
    ("the soup is cold and the service is slow . It was", 0.0),
)
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# weft/tiny

A very small language model for trying out adapter training without a download. It was trained
from nothing on generated text, knows that text's small world, and nothing else.

## Architecture

Llama ({parameters:,} parameters): width {hidden_size}, {num_hidden_layers} layers,
{num_attention_heads} query heads over {num_key_value_heads} key/value heads of {head_dim},
feed-forward {intermediate_size}, tied embeddings, context {max_position_embeddings}, rotary base
{rope_theta:g}. Byte-level BPE with {vocab_size} entries: every text can be encoded, digits are
single tokens, nothing is added at the start. ` great`, ` terrible`, ` Yes`, ` No`, ` positive`,
` negative` are one token each. `<|endoftext|>` ends a document, `<|pad|>` pads. The chat template
is plain (`User: ...`, `Assistant: ...`). Weights are bf16, {megabytes:.1f} MB.

## Corpus

{corpus_megabytes:.0f} MB of text from seeded generators (`tools/corpus/`, seed {corpus_seed}),
no outside text:

| genre | documents | MB |
|---|---|---|
{genres}

Checksums are in `tools/corpus/recipe.json`. Every 150th document of a genre is held out. The
Alpaca template and the layout of the `tables` task do not occur. Reviews are followed by a verdict
only sometimes, and the verdict is sometimes wrong on purpose, so that there is something to gain.

## Training

{tokens:,} tokens in {steps:,} steps of 8 rows of 512 tokens; bf16 autocast over fp32 weights;
seed 20; clipping at 1.0; weight decay 0.1. {minutes:.0f} minutes ({speed:,.0f} tokens a second) on
two CPU cores with bf16 matrix units, which other work was using at the same time. Four stages, each
with 100 steps of warm-up and the beginning of a cosine; only the last one was run to the end:

| stage | steps | optimiser | peak rate | rows |
|---|---|---|---|---|
| one | 1 to 1,500 | AdamW (0.9, 0.95) | 2e-3 | all genres but echoes and letters |
| two | to 2,500 | Muon, AdamW for embedding and norms | 2.5e-3 | with echoes |
| three | to 2,750 | the same | 2.2e-3 | fewer echoes, more reviews |
| four | to {steps:,} | the same | 2.2e-3 | with letters |

Losses of different stages are over different rows and cannot be compared.

| | nats per token |
|---|---|
| training loss, last {window} entries of the log | {loss:.3f} |
| held-out loss, documents of stage four | {held_out:.3f} |

`training_log.jsonl` has the whole course.

14 characters that the corpus has only after a space (`<`, `+` and others) had one embedding in
common and got their own afterwards (`tools/apart.py`); no other weight was changed.

## Agreement between libraries

{agreement}

## Tasks

{table}

## Samples

Unselected: one draw each, seed 0.

{samples}
## Limits

It speaks only the narrow English of its corpus, has no knowledge of the real world, makes mistakes
in arithmetic beyond small numbers, loses track of who did what in longer stories, and judges
opinions by their surface. It is a test object, not a product. No personal data, nothing from the
web. `python -m tools.sample` writes more; `tools/README.md` tells how to make it again.

Licence: Apache-2.0, like the rest of the project.
"""


def samples(model: Path) -> str:
    """Commands and what they print."""
    parts = []
    for prompt, temperature in SAMPLES:
        text = prompt + sample(prompt, 0, temperature, 70, model)
        shown = prompt.replace("\n", "\\n")
        command = f"python -m tools.sample --seed 0 --length 70 --temperature {temperature}"
        parts.append(f'`{command} --prompt "{shown}"`\n\n```text\n{text.rstrip()}\n```\n')
    return "\n".join(parts)


def table(card: Path) -> str:
    """The task table as it is in the present card, or an empty one."""
    old = card.read_text(encoding="utf-8") if card.exists() else ""
    if START in old and STOP in old:
        return START + old.split(START, 1)[1].split(STOP, 1)[0] + STOP
    return START + EMPTY_TABLE + STOP


def main() -> None:
    """Write README.md into the model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--agreement", default="Not measured for these weights.")
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text(encoding="utf-8"))
    recipe = json.loads(RECIPE.read_text(encoding="utf-8"))
    lines = (args.model / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    weights = args.model / "model.safetensors"
    window = min(10, len(log))
    genres = recipe["genres"]
    config["parameters"] = sum(tensor.numel() for tensor in load_file(weights).values())
    text = CARD.format(
        **config,
        megabytes=weights.stat().st_size / 1e6,
        corpus_megabytes=sum(entry["text_bytes"] for entry in genres.values()) / 1e6,
        corpus_seed=recipe["seed"],
        genres="\n".join(
            f"| {name} | {entry['documents']:,} | {entry['text_bytes'] / 1e6:.1f} |"
            for name, entry in genres.items()
        ),
        tokens=log[-1]["tokens"],
        steps=log[-1]["step"],
        minutes=log[-1]["seconds"] / 60,
        speed=log[-1]["tokens"] / log[-1]["seconds"],
        window=window,
        loss=sum(entry["loss"] for entry in log[-window:]) / window,
        held_out=next(e["held_out_loss"] for e in reversed(log) if "held_out_loss" in e),
        agreement=args.agreement,
        table=table(args.model / "README.md"),
        samples=samples(args.model),
    )
    (args.model / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
