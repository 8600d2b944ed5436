"""Boosting: merges as often as `merge_every` says."""

import torch
from boosting import Lora, adapted, merge_all, settings, train

given = settings()
torch.manual_seed(given["seed"])
model = adapted(Lora, given["rank"], given["alpha"])
train(model, given, after_epoch=lambda step: merge_all(model))
