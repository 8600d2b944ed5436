"""The whole state of training as one value: saving it and loading it resumes bit for bit.

Everything else that a step needs (batch, noise, learning rate) is a function of seed and step.
Shapes: L lanes (adapters that train together), P parameters of one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from weft.core.errors import InputError
from weft.core.files import write_atomic
from weft.methods.optimise import Moments

FILE = "state.safetensors"


@dataclass(frozen=True, eq=False)
class State:
    """After `step` steps: where theta and the optimiser are, and the best theta so far."""

    step: int
    theta_LP: torch.Tensor
    moments: Moments
    best_LP: torch.Tensor
    best_loss_L: tuple[float, ...]
    best_step_L: tuple[int, ...]

    @classmethod
    def fresh(cls, theta_LP: torch.Tensor) -> State:
        """Before the first step."""
        lanes = len(theta_LP)
        never = (float("inf"),) * lanes
        return cls(0, theta_LP, Moments.fresh(theta_LP), theta_LP, never, (0,) * lanes)

    def judged(self, loss_L: tuple[float, ...]) -> State:
        """With each lane's validation loss taken into account; the first of equals stays best."""
        better_L = [new < old for new, old in zip(loss_L, self.best_loss_L, strict=True)]
        mask_L1 = torch.tensor(better_L, device=self.theta_LP.device)[:, None]
        steps = zip(better_L, self.best_step_L, strict=True)
        return replace(
            self,
            best_LP=torch.where(mask_L1, self.theta_LP, self.best_LP),
            best_loss_L=tuple(map(min, self.best_loss_L, loss_L)),
            best_step_L=tuple(self.step if better else before for better, before in steps),
        )

    def save(self, directory: Path) -> None:
        """Write the state into `directory`."""
        tensors = {
            "theta": self.theta_LP,
            "first": self.moments.first_LP,
            "second": self.moments.second_LP,
            "best": self.best_LP,
        }
        scalars = {
            "step": self.step,
            "updates": self.moments.updates,
            "best_loss": [loss.hex() for loss in self.best_loss_L],
            "best_step": self.best_step_L,
        }
        tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        write_atomic(directory / FILE, save(tensors, {"state": json.dumps(scalars)}))

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> State:
        """Read what `save` wrote."""
        path = directory / FILE
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                scalars = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not a checkpoint of Weft: {error}") from None
        moments = Moments(scalars["updates"], tensors["first"], tensors["second"])
        best_loss = tuple(float.fromhex(loss) for loss in scalars["best_loss"])
        best_step = tuple(scalars["best_step"])
        return cls(
            scalars["step"], tensors["theta"], moments, tensors["best"], best_loss, best_step
        )
