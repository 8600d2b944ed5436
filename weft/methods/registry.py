"""Every method, by the name it has in a configuration."""

from __future__ import annotations

from weft.methods.backprop import BACKPROP
from weft.methods.es import ES
from weft.methods.estimate import Method
from weft.methods.mezo import MEZO

METHODS: dict[str, Method] = {
    "backprop": BACKPROP,
    "mezo": MEZO,
    "es": ES,
}
