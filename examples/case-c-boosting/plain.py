"""A plain adapter: it is trained from the first step to the last."""

import torch
from boosting import Lora, adapted, settings, train

given = settings()
torch.manual_seed(given["seed"])
train(adapted(Lora, given["rank"], given["alpha"]), given)
