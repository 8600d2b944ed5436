"""The whole state of training as one value: saving it and loading it resumes bit for bit.

Everything else that a step needs (batch, noise, learning rate) is a function of seed and step.
Shapes: L lanes (adapters that train together), P parameters of one, K commits of a lane.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from weft.core.errors import InputError
from weft.core.files import write_atomic
from weft.methods.boosting import Rounds
from weft.methods.optimise import Moments

FILE = "state.safetensors"


@dataclass(frozen=True, eq=False)
class Best:
    """A lane's best evaluation so far: the adapter, and how many commits lay below it."""

    theta_P: torch.Tensor
    loss: float = float("inf")
    step: int = 0
    commits: int = 0


@dataclass(frozen=True, eq=False)
class State:
    """After `step` steps: where theta and the optimiser are, what is committed, what was best."""

    step: int
    theta_LP: torch.Tensor
    moments: Moments
    rounds: tuple[Rounds, ...]
    best: tuple[Best, ...]

    @classmethod
    def fresh(cls, theta_LP: torch.Tensor) -> State:
        """Before the first step."""
        rounds = tuple(Rounds.none_yet(theta_P) for theta_P in theta_LP)
        best = tuple(Best(theta_P) for theta_P in theta_LP)
        return cls(0, theta_LP, Moments.fresh(theta_LP), rounds, best)

    @property
    def stacks(self) -> tuple[torch.Tensor, ...]:
        """What each lane has committed, [K, P]."""
        return tuple(lane.stack_KP for lane in self.rounds)

    def judged(self, loss_L: tuple[float, ...], min_delta: float = 0.0) -> State:
        """With each lane's validation loss taken into account; the first of equals stays best."""
        rounds, best = [], []
        lanes = zip(self.theta_LP, self.rounds, self.best, loss_L, strict=True)
        for theta_P, lane, before, loss in lanes:
            rounds.append(lane.judged(theta_P, self.step, loss, min_delta))
            here = Best(theta_P, loss, self.step, len(lane.stack_KP))
            best.append(here if loss < before.loss else before)
        return replace(self, rounds=tuple(rounds), best=tuple(best))

    def digest(self) -> str:
        """SHA-256 of theta, to the last bit."""
        return hashlib.sha256(self.theta_LP.cpu().contiguous().numpy().tobytes()).hexdigest()

    def save(self, directory: Path) -> None:
        """Write the state into `directory`."""
        tensors = {
            "theta": self.theta_LP,
            "first": self.moments.first_LP,
            "second": self.moments.second_LP,
            "best": torch.stack([lane.theta_P for lane in self.best]),
            "round_best": torch.stack([lane.best_P for lane in self.rounds]),
        }
        tensors |= {f"stack.{i}": stack for i, stack in enumerate(self.stacks) if len(stack)}
        scalars = {
            "step": self.step,
            "updates": self.moments.updates_L,
            "best": [[lane.loss.hex(), lane.step, lane.commits] for lane in self.best],
            "rounds": [
                [lane.number, lane.started, lane.best_loss.hex(), lane.best_step, lane.stale]
                for lane in self.rounds
            ],
        }
        tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        write_atomic(directory / FILE, save(tensors, {"state": json.dumps(scalars)}))

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> State:
        """Read what `save` wrote."""
        path = directory / FILE
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} is not a checkpoint of this Weft: {error}") from None
        return cls.read(data, device, path)

    @classmethod
    def read(cls, data: bytes, device: torch.device, path: Path) -> State:
        """The state in the bytes of `path`, which only errors look at."""
        try:
            tensors = {name: tensor.to(device) for name, tensor in load(data).items()}
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            scalars = json.loads(header["__metadata__"]["state"])
            theta_LP = tensors["theta"]
            moments = Moments(tuple(scalars["updates"]), tensors["first"], tensors["second"])
            rounds = tuple(
                Rounds(
                    tensors.get(f"stack.{i}", theta_LP.new_zeros((0, theta_LP.shape[1]))),
                    best_P,
                    number,
                    started,
                    float.fromhex(loss),
                    step,
                    stale,
                )
                for i, (best_P, (number, started, loss, step, stale)) in enumerate(
                    zip(tensors["round_best"], scalars["rounds"], strict=True)
                )
            )
            best = tuple(
                Best(theta_P, float.fromhex(loss), step, commits)
                for theta_P, (loss, step, commits) in zip(
                    tensors["best"], scalars["best"], strict=True
                )
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a checkpoint of this Weft: {error}") from None
        return cls(scalars["step"], theta_LP, moments, rounds, best)
