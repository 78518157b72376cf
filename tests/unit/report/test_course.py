from __future__ import annotations

from tersely.report.course import course_section
from tersely.report.html import render_report

REPORT = {
    "target_tokens": None,
    "target_range": [8, 24],
    "stages": [
        {
            "name": "<b>quality</b>",
            "first_step": 1,
            "last_step": 6,
            "first_weights": {"length": 1.0, "rouge_l": 0.5, "bleu": 0.0},
            "last_weights": {"length": 0.25, "rouge_l": 0.5, "bleu": 0.0},
        }
    ],
    "best": {"step": 4, "figure": "greedy.within_5", "value": 0.5, "checkpoint": "checkpoints/step-000004"},
    "roll_backs": [{"step": 8, "to_step": 4, "policy_version": 9, "reason": "entropy_collapse"}],
    "held_out": {
        "during": [
            {"step": 4, "greedy": {"within_5": 0.5, "rouge_l": None}, "sampled": {"within_5": 0.25}},
            {"step": 8, "greedy": {"within_5": 0.75, "rouge_l": None}, "sampled": {"within_5": 0.5}},
        ]
    },
}


def test_the_page_tells_how_the_run_went_on_the_way() -> None:
    page = render_report(REPORT)
    assert "&lt;b&gt;quality&lt;/b&gt;" in page
    assert "length 1 &rarr; 0.25, rouge_l 0.5</td>" in page
    assert "checkpoints/step-000004, after step 4" in page
    assert "After step 8 the run went back to the state after step 4 (version 9): entropy_collapse." in page
    assert page.count("Held out, ") >= 2
    assert "Held out, greedy: ROUGE-L" not in page, "nothing was measured"
    assert "Summaries of 8 to 24 tokens" in page


def test_a_run_without_any_of_it_has_no_such_part() -> None:
    assert course_section({"held_out": {"before": {}}, "stages": [], "best": None}) == ""
