"""What the README shows works, and what it points to is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from covpool.config import load_config

CHECK = """
import numpy as np
from covpool.pooling import list_poolings

ms.set_context(mode=ms.GRAPH_MODE)
assert "correlation" in list_poolings()
rng = np.random.default_rng(0)
images = rng.standard_normal((2, 3, 64, 64)).astype(np.float32)
logits = network.set_train(False)(ms.Tensor(images)).asnumpy()
assert logits.shape == (2, 10) and np.isfinite(logits).all()
x = rng.standard_normal((3, 4, 5, 5)).astype(np.float32)
expected = [np.corrcoef(sample.reshape(4, 25))[np.triu_indices(4)] for sample in x]
np.testing.assert_allclose(CorrelationPooling(4, eps=1e-12)(ms.Tensor(x)).asnumpy(), expected, atol=1e-5)
print("as documented")
"""


def test_a_pooling_of_your_own(root: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "readme_block.py"
    script.write_text(block + CHECK, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "as documented\n", done.stderr


ROOT = Path(__file__).parents[2]


def headings(text: str) -> set[str]:
    """Anchors of a Markdown document, as GitHub makes them from its headings."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "document", ["README.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("docs/**/*.md")))]
)
def test_links_lead_somewhere(root: Path, document: str) -> None:
    """Linked files and headings are there, and so is every document that is named in the text."""
    path = root / document
    text = path.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text):
        linked = path.parent / target if target else path
        assert linked.exists(), f"{document} points to {target}"
        if anchor:
            assert anchor in headings(linked.read_text(encoding="utf-8")), f"{document} points to {target}#{anchor}"
    for named in re.findall(r"docs/[\w/-]+\.md", text):
        assert (root / named).is_file(), f"{document} names {named}"


def test_documents_that_the_code_names_are_there(root: Path) -> None:
    for folder in ("src", "tests", "benchmarks", "scripts", "config"):
        for path in (p for p in (root / folder).rglob("*") if p.suffix in (".py", ".yaml", ".sh", ".cpp", ".h")):
            for named in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
                assert named.startswith("docs/benchmarks") or (root / named).is_file(), f"{path} names {named}"


def test_every_file_that_the_readme_names_is_there(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:config|scripts)/[\w.]+\.(?:yaml|py|sh)", text))
    assert named
    for name in named:
        assert (root / name).is_file(), name
        if name.endswith(".yaml"):
            load_config(root / name)


@pytest.mark.parametrize("script", ["run_distributed.sh", "quickstart.sh", "setup.sh"])
def test_shell_scripts_explain_themselves(root: Path, script: str) -> None:
    done = subprocess.run([root / "scripts" / script, "--help"], capture_output=True, text=True, timeout=20, check=True)
    assert f"Usage: scripts/{script}" in done.stdout


def test_the_accuracy_of_the_quick_start_is_what_its_runs_reached(root: Path) -> None:
    """`covpool study --study config/studies/quickstart.yaml` gave the file; the range leaves a point for rounding."""
    best = json.loads((root / "docs/measurements/quickstart.json").read_text())["best"]
    text = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    low, high = map(float, re.search(r"reaches (\d+) to (\d+) %", text).groups())
    assert low <= 100 * min(best["values"]) and 100 * max(best["values"]) <= high and high - low <= 8
    stated = f"{100 * best['mean']:.1f} ± {100 * best['std']:.1f} %"
    assert stated in text and stated in (root / "config/quickstart.yaml").read_text(encoding="utf-8")
