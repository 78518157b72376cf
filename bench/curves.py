"""The course of a run as one SVG picture, for docs/benchmarks.

usage: python bench/curves.py RUN_DIR OUT.svg

Four curves over the steps, of the sampled training completions: |tokens - target|, share within +-5 tokens, ROUGE-L,
entropy.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tersely.report.charts import line_chart
from tersely.telemetry.events import read_events

STYLE = """svg text { fill: #57606a; font: 12px system-ui, sans-serif; } .title { font-size: 13px; fill: #24292f; }
.rule { stroke: #d0d7de; } .series { fill: none; stroke: #1f6feb; stroke-width: 2; } .dot { fill: #1f6feb; }"""
CURVES = (
    ("mean |tokens - target|, tokens", "mean_abs_length_error", False),
    ("within 5 tokens of the target", "within_5", True),
    ("ROUGE-L to the reference", "rouge_l", False),
    ("entropy, nats per token", "entropy", False),
)


def main() -> None:
    run_dir, out = Path(sys.argv[1]), Path(sys.argv[2])
    steps = [event for event in read_events(run_dir / "events.jsonl") if event["kind"] == "step_finished"]
    cells, width, height = [], 0.0, 0.0
    for index, (title, key, percent) in enumerate(CURVES):
        points = [(step["step"], step["rewards"]["rouge_l"] if key == "rouge_l" else step[key]) for step in steps]
        match = re.search(r"<svg viewBox='0 0 (\S+) (\S+)'[^>]*>(.*)</svg>", line_chart(title, points, percent=percent))
        assert match is not None
        width, height = float(match[1]), float(match[2]) + 24
        x, y = index % 2 * (width + 20), index // 2 * (height + 12)
        cells.append(
            f"<g transform='translate({x:g} {y:g})'><text class='title' x='4' y='14'>{title}</text>"
            f"<g transform='translate(0 24)'>{match[3]}</g></g>"
        )
    box = f"0 0 {2 * width + 20:g} {2 * height + 12:g}"
    body = "".join(cells)
    out.write_text(
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='{box}'><style>{STYLE}</style>"
        f"<rect width='100%' height='100%' fill='#ffffff'/>{body}</svg>\n"
    )


if __name__ == "__main__":
    main()
