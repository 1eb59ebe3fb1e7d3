"""Networks side by side on corrupted images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from covpool import cli

ROOT = Path(__file__).resolve().parents[2]


def result(path: Path, **errors: float) -> str:
    content = {"corruptions": {name: {"error": error} for name, error in errors.items()}}
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_errors_relative_to_the_mean_of_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gap = [result(tmp_path / "1.json", fog=0.2, snow=0.4), result(tmp_path / "2.json", fog=0.4, snow=0.4)]
    gcp = result(tmp_path / "3.json", fog=0.15, snow=0.2)
    plot, output = tmp_path / "plot.png", tmp_path / "out.json"
    arguments = [f"gap={','.join(gap)}", f"gcp={gcp}", "--plot", str(plot), "--output", str(output)]
    assert cli.run(["compare-robustness", *arguments]) == 0
    figures = json.loads(output.read_text(encoding="utf-8"))
    assert figures["gcp"]["relative_mce"]["mean"] == pytest.approx(100 * (0.15 / 0.3 + 0.2 / 0.4) / 2)
    assert figures["gap"]["relative_mce"]["mean"] == pytest.approx(100)
    error = figures["gap"]["mean_error"]
    assert (error["mean"], error["std"]) == pytest.approx((0.35, 0.0707107), rel=1e-6)
    printed = capsys.readouterr().out
    assert "| gcp | 1 | 17.50 | 50.0 |" in printed and "| gap | 2 | 35.00 ± 7.07 | 100.0 ± 23.6 |" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gap"], "NAME=FILE"),
        (["gap=none.json"], "no result of eval.py"),
        (["gap=A", "--reference", "gcp"], "is none of gap"),
        (["gap=A", "gcp=B"], "different corruptions"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    files = {"A": result(tmp_path / "a.json", fog=0.2), "B": result(tmp_path / "b.json", snow=0.2)}
    given = [text[:-1] + files[text[-1]] if text[-2:] in ("=A", "=B") else text for text in arguments]
    assert cli.run(["compare-robustness", *given]) != 0
    assert said in capsys.readouterr().err
