"""The card of the shipped model: its form is that of the hub, and its facts are those of the files."""

import re

import pytest
import yaml
from places import ROOT

from unclip.checkpoint import read_header
from unclip.clip import load_clip
from unclip.models import SHIPPED
from unclip.pipeline.directory import read_manifest
from unclip.resources.weightless import parameters
from unclip.stages import load_stage

FOLDER = SHIPPED / "icons"
_, FRONT, BODY = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
FLAT = " ".join(BODY.split())
README, NOTICE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "NOTICE"))


def test_the_front_matter_is_that_of_the_hub():
    card = yaml.safe_load(FRONT)
    assert card["pipeline_tag"] == "text-to-image" and card["library_name"] == "unclip"
    assert card["license"] == "other" and (FOLDER / card["license_link"]).samefile(ROOT / "NOTICE")
    assert re.fullmatch(r"[a-z-]+", card["license_name"]) and card["language"] == "en"
    assert BODY.strip().startswith(f"# {read_manifest(FOLDER).name}\n")


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\((?!https://)([^)]+)\)", BODY)
    assert len(links) == 2 and all((FOLDER / link).is_file() for link in links)


def rows() -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in BODY.splitlines()]
    return {row[0].strip("`"): row[1:] for row in cells if len(row) == 5 and row[0].startswith("`")}


def millions(count: float) -> str:
    return f"{count / 1e6:.1f}M"


def test_its_parts_are_those_of_the_model():
    manifest = read_manifest(FOLDER)
    assert [*rows()] == [manifest.clip, manifest.prior, manifest.decoder, *manifest.upsamplers]


@pytest.mark.parametrize("file", [name for name in rows() if name != "clip"])
def test_its_numbers_are_those_of_the_files(file):
    _, count, seen, steps = rows()[file]
    stage = load_stage(FOLDER / file)
    memory = sum(value.numel() for name, value in stage.named_buffers() if ".memory." in name)
    assert count == millions(parameters(stage)) + (f", and {millions(memory)} of memory" if memory else "")
    assert seen == f"{read_header(FOLDER / file)['pictures_seen']:,}"
    assert steps == f"{stage.config.sampling.steps}" and stage.schedule.timesteps == 1000


def test_its_clip_and_its_guidance_are_those_of_the_files():
    assert rows()["clip"][1] == millions(parameters(load_clip(FOLDER / "clip")))
    scale = {
        kind: load_stage(FOLDER / f"{kind}.safetensors").config.sampling for kind in ("prior", "decoder")
    }
    prior, decoder = (scale[kind].guidance_scale for kind in ("prior", "decoder"))
    assert f"a guidance of {prior} in the prior and {decoder} in the decoder" in FLAT
    length = load_stage(FOLDER / "prior.safetensors").config.net.text_length
    assert f"more than {length} tokens is cut" in FLAT


def test_its_measurements_are_those_of_the_readme():
    table = [line for line in BODY.splitlines() if line.startswith("| its own CLIP")]
    assert len(table) == 4 and all(f"{line}\n" in README for line in table)
    for fact in (
        "8,931 vector drawings under 1,982 names, of which 461",
        "220,000 pictures",
        "1,640,784 pictures",
    ):
        assert fact in " ".join(README.split())
    assert "8,931 vector drawings under 1,982 names, of which 461" in FLAT and rows()["clip"][2] == "220,000"


def test_its_data_and_licences_are_those_of_the_notice():
    packages = re.findall(r"@iconify-json/[\w-]+", BODY)
    assert set(packages) == set(re.findall(r"@iconify-json/[\w-]+", NOTICE)) and len(packages) == 6
    for name in ("Apache License", "MIT", "CC BY 4.0", "all-MiniLM-L6-v2"):
        assert name in BODY and name in NOTICE
