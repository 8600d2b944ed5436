"""Scripts that know nothing of Weft: recorded, they do the same, and leave what they did."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import weft
from weft.runs.evidence import Encoded, Event, Generation, Happened, Pass, Settings, TrainStep
from weft.runs.recording import Recording

BASE = Path(weft.__file__).parent / "assets/tiny"
ROWS = [{"prompt": f"What is {i} plus {i + 3}?", "completion": f" {2 * i + 3}."} for i in range(16)]

HEAD = f"""
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
BASE = {str(BASE)!r}
torch.manual_seed(7)
tokenizer = AutoTokenizer.from_pretrained(BASE)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
rows = [json.loads(line) for line in open("rows.jsonl")]
"""

PIPELINE = """
from transformers import pipeline
writer = pipeline("text-generation", model=BASE, dtype=torch.float32)
writer.tokenizer.pad_token = tokenizer.pad_token
prompts = [row["prompt"] for row in rows[:3]]
for made in writer(prompts, max_new_tokens=9, do_sample=True, temperature=0.8, top_k=20,
                   batch_size=3, return_full_text=False):
    print(json.dumps(made[0]["generated_text"]))
"""

LOOP = """
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
for row in rows[:3]:
    ids = tokenizer(row["prompt"] + "\\nA:", return_tensors="pt").input_ids
    new = []
    with torch.no_grad():
        out = model(ids, use_cache=True)
        for _ in range(12):
            p = torch.softmax(out.logits[0, -1] / 0.7, -1)
            p, order = torch.sort(p, descending=True)
            p[torch.cumsum(p, -1) - p > 0.95] = 0
            token = order[torch.multinomial(p, 1)]
            if token.item() == tokenizer.eos_token_id:
                break
            new.append(token.item())
            out = model(token[None], past_key_values=out.past_key_values, use_cache=True)
    print(json.dumps(new))
"""

TRAINER = """
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(
    r=4, lora_alpha=16, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]))
data = [tokenizer(row["prompt"] + row["completion"]) for row in rows]
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="out", max_steps=4, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, learning_rate=2e-3, warmup_steps=2, max_grad_norm=0.5,
        weight_decay=0.1, report_to="none", use_cpu=True, logging_steps=1, save_strategy="no",
        seed=11, disable_tqdm=True),
    train_dataset=data,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
print(json.dumps([log for log in trainer.state.log_history if "loss" in log]))
model.save_pretrained("adapter")
"""

SFT = """
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer
data = load_dataset("json", data_files="rows.jsonl", split="train")
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32),
    args=SFTConfig(
        output_dir="out", max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3,
        gradient_accumulation_steps=2, report_to="none", use_cpu=True, bf16=False,
        logging_steps=1, save_strategy="no", seed=3, disable_tqdm=True),
    train_dataset=data,
    processing_class=tokenizer,
    peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
)
trainer.train()
print(json.dumps([log for log in trainer.state.log_history if "loss" in log]))
trainer.save_model("adapter")
"""


class Ran:
    """A script after it has run: what it printed, and the adapter that it saved."""

    def __init__(self, home: Path, script: str, *, recorded: bool) -> None:
        home.mkdir()
        (home / "main.py").write_text(HEAD + script)
        (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        command = [sys.executable, "main.py"]
        if recorded:
            entry = "from weft.cli.main import main; main()"
            command = [sys.executable, "-c", entry, "record", "--out", "recording", "--"]
            command += ["python", "main.py"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"HF_DATASETS_CACHE": str(home / "cache"), "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.home = home
        self.lines = [line for line in done.stdout.splitlines() if line.startswith(('"', "["))]
        file = home / "adapter/adapter_model.safetensors"
        self.adapter = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None

    @property
    def events(self) -> tuple[Event, ...]:
        recording = Recording(self.home / "recording")
        assert recording.about.status == "finished"
        assert set(recording.about.files) == {"main.py", "rows.jsonl"}
        failed = [e for e in recording.events if e.kind == "notice" and "could not" in e.text]
        assert not failed
        return recording.events


def timeless(line: str) -> object:
    """A printed line without what a clock said."""
    return json.loads(
        line, object_hook=lambda log: {k: v for k, v in log.items() if "time" not in k}
    )


def recorded(tmp_path: Path, script: str) -> Ran:
    """The script with and without recording: the same, to the last bit of its adapter."""
    plain = Ran(tmp_path / "plain", script, recorded=False)
    ran = Ran(tmp_path / "recorded", script, recorded=True)
    assert [timeless(line) for line in plain.lines] == [timeless(line) for line in ran.lines]
    assert plain.lines
    assert plain.adapter == ran.adapter
    return ran


@pytest.mark.slow
def test_a_pipeline(tmp_path: Path) -> None:
    ran = recorded(tmp_path, PIPELINE)
    (made,) = (event for event in ran.events if isinstance(event, Generation))
    assert made.driver == "generate"
    assert [json.loads(line) for line in ran.lines] == list(made.texts)
    expected = {"max_tokens": 9, "greedy": False, "temperature": 0.8, "top_k": 20}
    assert made.settings | expected == made.settings
    assert {draw.kept for draw in made.draws} == {20}
    assert {round(draw.temperature or 0, 4) for draw in made.draws} == {0.8}
    encoded = {e.ids: e.slots[0].record for e in ran.events if isinstance(e, Encoded)}
    assert [encoded[prompt] for prompt in made.prompts] == [f"rows.jsonl:{i}" for i in (1, 2, 3)]


@pytest.mark.slow
def test_a_loop_by_hand(tmp_path: Path) -> None:
    ran = recorded(tmp_path, LOOP)
    made = [event for event in ran.events if isinstance(event, Generation)]
    ended = [list(m.tokens[0][:-1] if m.ended == ("eos",) else m.tokens[0]) for m in made]
    assert ended == [json.loads(line) for line in ran.lines]
    assert {m.driver for m in made} == {"loop"}
    assert {m.settings["feeding"] for m in made} == {"cache"}
    assert {m.settings["temperature"] for m in made} == {0.7}
    assert made[-1].settings["top_p"] == 0.95
    passes = [event.index for event in ran.events if isinstance(event, Pass)]
    assert [index for m in made for index in m.passes] == passes


def steps_of(ran: Ran) -> tuple[list[TrainStep], dict[str, object], list[dict[str, float]]]:
    """Its steps, its settings, and what it logged of each step."""
    steps = [event for event in ran.events if isinstance(event, TrainStep)]
    found = {k: v for e in ran.events if isinstance(e, Settings) for k, v in e.values.items()}
    return steps, found, json.loads(ran.lines[0])


@pytest.mark.slow
def test_a_trainer_with_peft(tmp_path: Path) -> None:
    ran = recorded(tmp_path, TRAINER)
    steps, settings, logs = steps_of(ran)
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert [step.grad_norm for step in steps] == pytest.approx(
        [log["grad_norm"] for log in logs], rel=1e-3
    )
    # in the log, the learning rate of a step and the loss summed over its backward calls
    assert [step.lr[0] for step in steps] == pytest.approx([log["learning_rate"] for log in logs])
    assert [sum(step.losses) for step in steps] == pytest.approx(
        [log["loss"] for log in logs], abs=2e-3
    )
    expected = {
        "optimiser.name": "adamw",
        "optimiser.lr": 2e-3,
        "optimiser.clip": 0.5,
        "optimiser.schedule": "linear",
        "batch_size": 4,
        "micro_batch_size": 2,
        "seed": 11,
        "steps": 4,
        "adapter.rank": 4,
    }
    assert settings | expected == settings
    names = [row for step in steps for row in step.rows]
    assert len(set(names)) == 16  # 4 steps of 4 rows: each record once
    assert set(names) == {f"rows.jsonl:{i}" for i in range(1, 17)}
    saved = [e for e in ran.events if isinstance(e, Happened) and e.what == "save"]
    assert [e.facts["sha256"] for e in saved] == [ran.adapter]


@pytest.mark.slow
def test_an_sft_trainer_of_trl(tmp_path: Path) -> None:
    ran = recorded(tmp_path, SFT)
    steps, settings, logs = steps_of(ran)
    assert [step.step for step in steps] == [1, 2, 3]
    assert [step.grad_norm for step in steps] == pytest.approx(
        [log["grad_norm"] for log in logs], rel=1e-3
    )
    assert [sum(step.losses) for step in steps] == pytest.approx(
        [log["loss"] for log in logs], abs=2e-3
    )
    assert all(step.supervised and step.labels and step.batch for step in steps)
    names = [row for step in steps for row in step.rows]
    assert len(set(names)) == 12
    assert set(names) <= {f"rows.jsonl:{i}" for i in range(1, 17)}
    assert settings["optimiser.lr"] == 1e-3
    assert settings["batch_size"] == 4
