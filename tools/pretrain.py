"""Pretrain the bundled base model on the packed corpus: `python -m tools.pretrain`.

bf16 autocast over fp32 master weights, cosine schedule with warm-up. A run can be stopped and
started again with the same command: it goes on from its last checkpoint. A second stage takes the
weights of the first (`--start`) and has its own rows, schedule and optimiser.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tools.attention import block_attention
from tools.pack import EOS_ID, PAD_ID, ROW

ARCHITECTURE = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": ROW,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
}
WARMUP = 100
FLOOR = 0.02
LOG = "training_log.jsonl"
CHECKPOINT = "checkpoint.pt"


def build(seed: int) -> LlamaForCausalLM:
    """A fresh model; the draw of the weights does not touch the caller's random state."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**ARCHITECTURE))


def rate(step: int, share: float, peak: float) -> float:
    """Learning rate: linear warm-up, then cosine over the share of the run that is done."""
    warm = min(1.0, (step + 1) / WARMUP)
    return peak * warm * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def order(rows: int, epoch: int, seed: int) -> np.ndarray:
    """Row order of an epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


def batch_rows(data: np.ndarray, step: int, size: int, seed: int) -> torch.Tensor:
    """The rows of a step: a function of (seed, step) only."""
    per_epoch = len(data) // size
    epoch, place = divmod(step, per_epoch)
    picked = order(len(data), epoch, seed)[place * size : (place + 1) * size]
    return torch.from_numpy(data[picked].astype(np.int64))


class Loss(torch.nn.Module):
    """Mean next-token loss over the real tokens of rows."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Loss of a batch of rows."""
        positions = torch.arange(ROW)[None].expand(rows.shape[0], ROW)
        logits = self.model(input_ids=rows, position_ids=positions, use_cache=False).logits
        targets = rows[:, 1:].masked_fill(rows[:, 1:] == PAD_ID, -100)
        flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
        return F.cross_entropy(flat, targets.reshape(-1))


@torch.no_grad()
def held_out_loss(loss: torch.nn.Module, data: np.ndarray, size: int, limit: int) -> float:
    """Loss on held-out rows, weighted by tokens."""
    total = count = 0.0
    for start in range(0, min(limit, len(data) // size * size), size):
        rows = torch.from_numpy(data[start : start + size].astype(np.int64))
        tokens = float((rows[:, 1:] != PAD_ID).sum())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total += float(loss(rows)) * tokens
        count += tokens
    return total / count


def export(model: LlamaForCausalLM, out: Path, log: Path) -> None:
    """Write config, generation config, bf16 weights and the training log."""
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **ARCHITECTURE,
        "rope_theta": ARCHITECTURE["rope_parameters"]["rope_theta"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    generation = {"eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
    weights = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    shutil.copyfile(log, out / LOG)


def copy_log(source: Path, target: Path, steps: int) -> None:
    """Begin a stage's log with the lines of the stage before."""
    lines = source.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= steps]
    target.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def adamw(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """AdamW for everything, no weight decay on the norms."""
    norms = [p for p in model.parameters() if p.dim() < 2]
    rest = [p for p in model.parameters() if p.dim() >= 2]
    groups = [{"params": rest, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)]


def muon(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    inner = [p for name, p in named if p.dim() == 2 and "embed" not in name]
    norms = [p for _, p in named if p.dim() < 2]
    embedding = [p for name, p in named if "embed" in name]
    groups = [{"params": embedding, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(inner, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True),
    ]


OPTIMISERS: dict[str, Callable[[LlamaForCausalLM], list[torch.optim.Optimizer]]] = {
    "adamw": adamw,
    "muon": muon,
}


def save(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint under a temporary name, then rename it."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder made by tools.pack")
    parser.add_argument("--run", type=Path, required=True, help="checkpoints and log")
    parser.add_argument("--out", type=Path, help="model folder to export to at the end")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="end earlier, with a full cosine, after this much training time",
    )
    parser.add_argument("--stop-at", type=int, help="end after this step, whatever the schedule")
    parser.add_argument("--start", type=Path, help="run folder of an earlier stage")
    parser.add_argument("--optimiser", choices=OPTIMISERS, default="adamw")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    checkpoint = args.run / CHECKPOINT
    ALL_ATTENTION_FUNCTIONS.register("blocks", block_attention)
    model = build(args.seed)
    model.set_attn_implementation("blocks")
    if args.export_only:
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
        export(model, args.out, args.run / LOG)
        return
    optimisers = OPTIMISERS[args.optimiser](model)
    start, before, seen, clock, clock_before = 0, 0, 0, 0.0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        before, start = state["before"], state["step"] - state["before"]
        seen, clock, clock_before = state["tokens"], state["seconds"], state["seconds_before"]
    elif args.start:
        state = torch.load(args.start / CHECKPOINT, weights_only=True)
        model.load_state_dict(state["model"])
        before, seen = state["step"], state["tokens"]
        clock = clock_before = state["seconds"]
        copy_log(args.start / LOG, args.run / LOG, before)
    data = np.load(args.data / "train.npy", mmap_mode="r")
    held = np.load(args.data / "held_out.npy")
    loss_of = torch.compile(Loss(model))
    log = (args.run / LOG).open("a", encoding="utf-8")
    running: list[float] = []
    since = time.perf_counter()
    for step in range(start, args.steps):
        spent = (clock - clock_before + time.perf_counter() - since) / 60 / args.minutes
        lr = rate(step, max(step / args.steps, spent), args.lr)
        last = step + 1 in (args.steps, args.stop_at) or spent >= 1
        rows = batch_rows(data, step, args.batch, args.seed)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        running.append(float(loss.detach()))
        seen += int((rows != PAD_ID).sum())
        done = before + step + 1
        if done % 25 == 0 or last:
            now = clock + time.perf_counter() - since
            entry = {
                "step": done,
                "loss": round(sum(running) / len(running), 4),
                "lr": round(lr, 7),
                "grad_norm": round(float(norm), 3),
                "tokens": seen,
                "seconds": round(now, 1),
            }
            running = []
            if done % args.save_every == 0 or last:
                limit = len(held) if last else 64
                entry["held_out_loss"] = round(held_out_loss(loss_of, held, args.batch, limit), 4)
                save(
                    checkpoint,
                    {
                        "model": model.state_dict(),
                        "optimisers": [o.state_dict() for o in optimisers],
                        "before": before,
                        "seconds_before": clock_before,
                        "step": done,
                        "tokens": seen,
                        "seconds": now,
                    },
                )
            log.write(json.dumps(entry) + "\n")
            log.flush()
        if last:
            break
    if args.out:
        export(model, args.out, args.run / LOG)


if __name__ == "__main__":
    main()
