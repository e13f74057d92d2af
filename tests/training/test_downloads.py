"""What a recipe may fetch: nothing from a hub unless that is allowed, or typed."""

from __future__ import annotations

import pytest

from training.chain import main as chain
from training.programs import program
from training.tasks.recipes import PictureRecipe
from unclip.config import ConfigError

pytestmark = pytest.mark.attack


RECIPE = """
data: {shards: [a.tar], size: 8}
stage: {net: {image_size: 8, channels: 8, channel_mult: [1], num_res_blocks: 1}}
train: {out: run, pictures: 8, batch_size: 8}
"""


@pytest.mark.parametrize("name", ["transformers:someone/something", "open_clip:hf-hub:someone/something"])
def test_a_recipe_fetches_from_a_hub_only_where_that_is_allowed(name, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(f"clip: {name}\n{RECIPE}")
    with pytest.raises(ConfigError, match=f"clip: {name} would be fetched .*--allow-downloads"):
        program(PictureRecipe, "", [str(path)])
    for more in ("--allow-downloads", f"clip={name}"):
        assert program(PictureRecipe, "", [str(path), more]).clip == name
    (tmp_path / "c.yaml").write_text(f"name: a\nout: b\nclip: {name}\nstages: []\n")
    with pytest.raises(ConfigError, match="would be fetched"):
        chain([str(tmp_path / "c.yaml")])
    link = f"name: a\nout: b\nstages: [{{program: decoder, config: {path}, set: [seed=1, 'clip={name}']}}]"
    (tmp_path / "c.yaml").write_text(link.replace("seed=1, ", ""))
    with pytest.raises(ConfigError, match="would be fetched"):  # nobody typed it
        chain([str(tmp_path / "c.yaml")])
    for known in ("open_clip:ViT-B-32@laion2b_s34b_b79k", f"transformers:{tmp_path}"):
        path.write_text(f"clip: {known}\n{RECIPE}")
        assert program(PictureRecipe, "", [str(path)]).clip == known
