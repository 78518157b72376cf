"""The report page and its table."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tersely.report.charts import line_chart, nice_ticks
from tersely.report.html import render_report, write_report
from tersely.report.table import held_out_lines, held_out_rows
from tersely.supervise.run_dir import RunDir

HOSTILE = "<script>alert('x')</script><img src=x onerror=\"y\">&amp; ' </pre></style>"


def figures(mean: float, error: float, within: float, rouge: float) -> dict[str, Any]:
    return {
        "mean_tokens": mean,
        "mean_abs_length_error": error,
        "within_5": within,
        "stopped": 1.0,
        "rouge_l": rouge,
        "n": 50,
    }


def make_report(text: str = "A summary.") -> dict[str, Any]:
    return {
        "target_tokens": 32,
        "max_completion_tokens": 64,
        "steps": 20,
        "seconds": 600.0,
        "seconds_to_first_step": 40.0,
        "held_out": {
            "before": {"greedy": figures(58.0, 26.0, 0.02, 0.2), "sampled": figures(60.0, 28.0, 0.04, 0.19)},
            "after": {"greedy": figures(34.0, 7.0, 0.5, 0.2), "sampled": figures(33.0, 12.0, 0.4, 0.2)},
            "paired": {"sampled": {"rouge_l_difference": {"mean": 0.01, "low": -0.012, "high": 0.03, "n": 50}}},
        },
        "groups": {"issued": 80, "trained": 80, "stale": 0, "no_signal": 0, "quarantined": 0, "in_flight": 0},
        "examples": [
            {
                "prompt_id": text,
                "document": text,
                "reference": text,
                "before": text,
                "after": text,
                "before_tokens": 60,
                "after_tokens": 33,
            }
        ],
        "curve": [
            {
                "step": step,
                "rewards": {"length": -1.0 / step, text: None if step == 2 else 0.1},
                "mean_tokens": 60.0 - step,
                "mean_abs_length_error": 28.0 - step,
                "within_5": 0.02 * step,
            }
            for step in range(1, 21)
        ],
    }


class Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    parsed.close()
    return parsed


def test_hostile_text_stays_text() -> None:
    page = render_report(make_report(HOSTILE), [], {"data": {"prompt": HOSTILE}})
    parsed = outline(page)
    assert not {"script", "img", "iframe", "link"} & set(parsed.tags)
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert parsed.text.count(HOSTILE) >= 5
    assert parsed.tags == outline(render_report(make_report("plain"), [], {"data": {"prompt": "plain"}})).tags


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = render_report(make_report(), [], {})
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    assert all(name not in ("src", "href") for name, _ in outline(page).attributes)


def test_the_page_says_what_was_learned() -> None:
    text = outline(render_report(make_report())).text
    assert "28.0 \u2192 12.0 tokens, 57 % lower" in text
    assert "+0.010 (95 % -0.012 to +0.030)" in text.replace("\u00a0", " ")
    assert "50 held-out prompts" in text


def test_the_title_names_target_and_run() -> None:
    assert "<title>tersely: 32 tokens, run r-&lt;1&gt;</title>" in render_report({**make_report(), "run_id": "r-<1>"})
    assert "<title>tersely</title>" in render_report({})


def test_the_page_shows_no_password() -> None:
    page = render_report(make_report(), [], {"queue": {"url": "redis://me:hunter2@box:6379", "username": None}})
    assert "hunter2" not in page
    assert "redis://me@box:6379" in page


def test_a_completion_without_text_is_told_from_a_missing_one() -> None:
    report = make_report()
    report["examples"][0]["before"] = " "
    assert outline(render_report(report)).text.count("(no text)") == 1


def test_an_empty_report_is_still_a_page() -> None:
    assert "<h1>" in render_report({})


def test_steps_of_the_event_log_stand_in_for_a_missing_curve() -> None:
    events = [{"kind": "step_finished", "step": step, "mean_tokens": 40.0 + step} for step in (1, 2)]
    assert "<polyline" in render_report({"target_tokens": 32}, events)


def test_the_same_data_gives_the_same_page() -> None:
    assert render_report(make_report()) == render_report(make_report())


def test_write_report_reads_the_run_directory(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(make_report()))
    (tmp_path / "events.jsonl").write_text('{"time": 1, "kind": "service_died", "name": "rollout-0"}\n')
    path = write_report(RunDir(tmp_path))
    assert path == tmp_path / "report.html"
    assert "died and were restarted: 1" in path.read_text()


def test_table_rows_have_both_modes_and_the_change() -> None:
    rows = held_out_rows(make_report())
    assert [row.mode for row in rows] == ["sampled"] * 5 + ["greedy"] * 5
    assert (rows[1].before, rows[1].after, rows[1].change) == ("28.0", "12.0", "-16.0")
    assert (rows[2].before, rows[2].after, rows[2].change) == ("4 %", "40 %", "+36 points")
    assert held_out_lines({}) == []
    assert len({line.index(row.mode) for line, row in zip(held_out_lines(make_report())[1:], rows, strict=True)}) == 1


def test_gaps_break_the_line_and_infinite_values_are_no_points() -> None:
    svg = line_chart("x", [(1, 1.0), (2, 2.0), (3, None), (4, 1.0), (5, 2.0), (6, math.inf)])
    assert svg.count("<polyline") == 2
    assert svg.count("<circle") == 4
    assert "no figures" in line_chart("x", [(1, None)])


def test_ticks_are_round_and_cover_the_range() -> None:
    assert nice_ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    for low, high in [(-0.93, -0.12), (12.0, 61.0), (3.0, 3.0), (0.0, 0.0)]:
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 7


ALARM: dict[str, Any] = {
    "kind": "alarm",
    "time": 0.0,
    "name": "length_at_limit",
    "step": 7,
    "message": f"62 % were cut off {HOSTILE}",
    "cause": "Running on pays.",
    "setting": "learner.learning_rate",
    "value": 0.62,
    "limit": 0.5,
    "change": "Halve it.",
}


def test_alarms_come_first_with_cause_and_setting_and_are_marked_in_the_charts() -> None:
    steps = [
        {"kind": "step_finished", "time": 0.0, "step": step, "entropy": 2.0, "mismatch": 5e-6} for step in (1, 7, 9)
    ]
    short = [{"kind": "alarm", "time": 0.0, "name": "batch_short", "step": step, "groups": 3} for step in (2, 3)]
    page = render_report(make_report(), [*steps, ALARM, *short])
    assert page.index("<h2>Alarms</h2>") < page.index("<h2>Held out</h2>")
    for text in ("length_at_limit", "Running on pays.", "<code>learner.learning_rate</code>", "Halve it."):
        assert text in page
    assert "<script" not in page
    assert "2 times from step 2 to 3" in page
    assert page.count("class='mark'") == page.count("<svg")  # each chart has the one step that an alarm names
    assert "5e-6" in page


def test_a_run_without_alarms_has_no_section_and_no_marks() -> None:
    page = render_report(make_report(), [{"kind": "step_finished", "time": 0.0, "step": 1, "entropy": 2.0}])
    assert "Alarms" not in page
    assert "class='mark'" not in page


def test_only_so_many_alarms_are_shown_in_full() -> None:
    page = render_report(make_report(), [{**ALARM, "step": step} for step in range(1, 31)])
    assert page.count("class='card alarm'") == 20
    assert "And 10 more" in page


def test_shares_are_drawn_between_nothing_and_all() -> None:
    for share in (0.0, 1.0):
        labels = re.findall(
            r"text-anchor='end'>(-?\d+) %<", line_chart("share", [(1, share), (2, share)], percent=True)
        )
        assert labels
        assert all(0 <= int(label) <= 100 for label in labels)
