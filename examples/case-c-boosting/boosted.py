"""Boosting: every `merge_every` steps the adapter goes into the weights and begins anew."""

import torch
from boosting import Lora, adapted, merge_all, settings, train

given = settings()
torch.manual_seed(given["seed"])
model = adapted(Lora, given["rank"], given["alpha"])


def after_step(step):
    if step % given["merge_every"] == 0:
        merge_all(model)


train(model, given, after_step=after_step)
