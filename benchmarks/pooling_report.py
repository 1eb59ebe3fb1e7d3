"""Tables and chart of benchmarks/pooling.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.measure import heading, table
from covpool.plots import COLOURS, new_figure, save

RUNTIMES = {
    "mindspore": "MindSpore",
    "compiled": "MindSpore, compiled kernels",
    "torch": "PyTorch, eager",
    "released": "PyTorch, released steps",
}
OURS = ("mindspore", "compiled")
PEERS = ("torch", "released")
RATIOS = [f"{ours} / {peer}" for ours in OURS for peer in PEERS]
SHADES = tuple(COLOURS[number] for number in (1, 5, 2, 7))  # blue, sky, vermilion, grey


def overhead(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """DropCov over plain pooling, of the same run."""
    by_key = {(c["pooling"], c["d"], c["phase"]): c for c in cases}
    rows = []
    for (name, d, phase), case in by_key.items():
        plain = by_key.get(("gcp", d, phase))
        if name == "dropcov" and plain:
            rows.append({"d": d, "phase": phase} | {r: case[r]["median"] / plain[r]["median"] for r in RUNTIMES})
    return rows


def markdown(found: dict[str, Any]) -> str:
    """The report as tables."""
    rows = []
    for case in found["cases"][1:]:
        cells = [case["pooling"], case["d"], case["phase"]]
        for r in RUNTIMES:
            v = case.get(r)
            cells.append(f"{v['median']:.1f} ({v['p10']:.1f}-{v['p90']:.1f})" if v else "")
        cells += [f"{case[k]:.2f}" if k in case else "" for k in RATIOS]
        rows.append([*cells, " / ".join(f"{e:.0e}" for e in case.get("differences", []))])
    nothing = found["cases"][0]
    ratios = [[row["d"], row["phase"], *(f"{row[r]:.2f}" for r in RUNTIMES)] for row in found["dropcov over plain"]]
    sizes = [[m["pooling"], m["d"], m["batch"], *(f"{m[r] / 2**20:.0f}" for r in RUNTIMES)] for m in found["memory"]]
    lines = ["# Poolings against PyTorch", "", *heading(found["about"])]
    lines += ["Microseconds per image: median over rounds (10th to 90th percentile). Ratios below 1 favour MindSpore."]
    lines += ["Every number holds the fixed cost of a call (second table), divided by the batch.", ""]
    lines += table(["pooling", "d", "phase", *RUNTIMES.values(), *RATIOS, "value / gradient differ by"], rows)
    lines += ["", "## Fixed cost of one call, microseconds", ""]
    lines += [f"* {title}: {nothing[r]['median']:.1f}" for r, title in RUNTIMES.items()]
    lines += ["", "## DropCov over plain pooling", "", "Published: 1.03 in training, 1.00 in evaluation.", ""]
    lines += table(["d", "phase", *RUNTIMES.values()], ratios)
    lines += ["", "## Peak memory of training, MiB beyond a run with one image", ""]
    lines += table(["pooling", "d", "batch", *RUNTIMES.values()], sizes)
    return "\n".join(lines) + "\n"


def chart(cases: list[dict[str, Any]], path: Path) -> None:
    """A bar for each runtime and pooling, a panel for each d and phase."""
    widths, phases = sorted({c["d"] for c in cases}), ("evaluation", "training")
    figure = new_figure(14, 3.4 * len(widths))
    axes = figure.subplots(len(widths), 2, squeeze=False)
    for axis, d, phase in ((axes[i][j], d, p) for i, d in enumerate(widths) for j, p in enumerate(phases)):
        shown = [c for c in cases if c["d"] == d and c["phase"] == phase]
        for k, (r, title) in enumerate(RUNTIMES.items()):
            places = [i + 0.2 * (k - 1.5) for i, c in enumerate(shown) if r in c]
            axis.bar(places, [c[r]["median"] for c in shown if r in c], 0.2, label=title, color=SHADES[k])
        axis.set_xticks(range(len(shown)), [c["pooling"] for c in shown], rotation=45, ha="right")
        axis.set_yscale("log")
        axis.set_title(f"d = {d}, {phase}")
        axis.set_ylabel("µs per image")
        axis.grid(axis="y", alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    save(figure, path)
