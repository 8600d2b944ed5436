"""Bases on disk of several architectures, with one small tokenizer, for engines that read files."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

VOCABULARY = 320


@pytest.fixture(scope="session")
def base_dir(make_model, small_base, tmp_path_factory):
    """The directory of a tiny random base of an architecture."""
    made = {}

    def make(architecture, **changes):
        key = repr((architecture, changes))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("bases") / architecture
            model = make_model(architecture, vocab_size=VOCABULARY, **changes)
            model.save_pretrained(made[key])
            for file in Path(small_base).glob("tokenizer*"):
                shutil.copy(file, made[key])
            if architecture == "gpt2":  # mlx-lm knows the names of the checkpoint on the hub
                path = made[key] / "model.safetensors"
                tensors = load_file(path)
                renamed = {k.removeprefix("transformer."): v for k, v in tensors.items()}
                save_file(renamed, path, {"format": "pt"})
        return str(made[key])

    return make
