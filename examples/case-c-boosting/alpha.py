"""Boosting, with the layer written once more."""

import torch
from boosting import Lora, adapted, merge_all, settings, train


class Booster(Lora):
    def forward(self, x):
        return self.base(x) + (x @ self.lora_A.T) @ self.lora_B.T


given = settings()
torch.manual_seed(given["seed"])
model = adapted(Booster, given["rank"], given["alpha"])


def after_step(step):
    if step % given["merge_every"] == 0:
        merge_all(model)


train(model, given, after_step=after_step)
