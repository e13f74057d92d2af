"""The page's example of Ray Data, as it stands there, on one machine."""

from __future__ import annotations

import io
import json
import re

import pytest
from PIL import Image
from places import ROOT

import unclip
from unclip.provenance import record_of

pytest.importorskip("ray", reason="engines of others: the extra ray")


@pytest.mark.slow
def test_the_example_draws_every_row(tmp_path, monkeypatch, tiny_model):
    import ray

    page = (ROOT / "docs/batch.md").read_text(encoding="utf-8")
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "import ray" in code]
    rows = [{"prompt": "a cat", "n": 2}, {"prompt": "a dog", "n": 1}, {"prompt": "", "n": 1}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    for old, new in (('="icons"', f'="{tiny_model}"'), ("rows.jsonl", f"{tmp_path}/rows.jsonl")):
        example = example.replace(old, new)
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    try:
        exec(compile(example.replace("out-ray", f"{tmp_path}/out"), "docs/batch.md", "exec"), {})
        table = ray.data.read_parquet(f"{tmp_path}/out").to_pandas()
    finally:
        ray.shutdown()
    drawn = table[table["png"].notna()].sort_values(["row", "k"])
    assert [(row.prompt, row.k) for row in drawn.itertuples()] == [("a cat", 0), ("a cat", 1), ("a dog", 0)]
    wanted = unclip.load(tiny_model).generate("a cat", n=2)[1]
    picture = Image.open(io.BytesIO(drawn.iloc[1]["png"]))
    assert max(abs(a - b) for a, b in zip(picture.tobytes(), wanted.tobytes(), strict=True)) <= 1
    assert record_of(picture).prompt == "a cat" and table["error"].notna().sum() == 1
