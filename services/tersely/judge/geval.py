"""DeepEval's G-Eval with our frozen rubrics and our own client: the one place that imports DeepEval."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from tersely.errors import PackageMissing
from tersely.judge.cache import Answer
from tersely.judge.endpoint import Judged
from tersely.judge.failures import CallFailed
from tersely.judge.prompt import after_texts, before_texts, delimited, mark_of
from tersely.judge.rubrics import Rubric

_QUIET = {"DEEPEVAL_TELEMETRY_OPT_OUT": "1", "DEEPEVAL_DISABLE_DOTENV": "1", "DEEPEVAL_FILE_SYSTEM": "READ_ONLY"}
_IMPORTING = threading.Lock()
WAY_OUT = "Make the judge's environment: make setup-judge. Or install it here: pip install 'tersely[judge]'"


def check_deepeval() -> None:
    """Raises PackageMissing where DeepEval is not installed; quick, for it imports nothing."""
    if find_spec("deepeval") is None:
        raise PackageMissing("The judge needs the Python package deepeval, which is not installed.", WAY_OUT)


def load_deepeval() -> None:
    """Imports DeepEval (seconds), without telemetry, .env files and files of its own, and without its greeting."""
    os.environ.update(_QUIET)
    with _IMPORTING, contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module("deepeval.metrics")


class GEvalAxis:
    """One rubric as a G-Eval metric; DeepEval is imported when something is measured, not for what is in the cache.

    Args:
        rubric: The rubric.
    """

    def __init__(self, rubric: Rubric) -> None:
        self._rubric = rubric

    def _template(self) -> type:
        from deepeval.metrics.g_eval import GEvalTemplate

        rubric = self._rubric

        class FrozenTemplate(GEvalTemplate):  # type: ignore[misc]
            """Our words around G-Eval's parts; the mark comes as additional context."""

            @staticmethod
            def generate_evaluation_results(test_case_content: str, _additional_context: str) -> str:
                """The prompt."""
                return (
                    before_texts(rubric, _additional_context) + test_case_content.rstrip() + "\n" + after_texts(rubric)
                )

        return FrozenTemplate

    def measure(self, document: str, summary: str, ask: Callable[[str], Judged]) -> Answer:
        """Judges a summary.

        Args:
            document: Source text.
            summary: The hostile text.
            ask: Makes the call, with whatever retries it likes.

        Raises:
            CallFailed: As `ask` raised it, or because G-Eval made no score of the answer.
        """
        load_deepeval()
        from deepeval.metrics import GEval
        from deepeval.metrics.g_eval import Rubric as Anchor
        from deepeval.test_case import LLMTestCase, SingleTurnParams

        mark = mark_of(document, summary)
        call = _one_call(ask)
        metric = GEval(
            name=self._rubric.axis,
            evaluation_steps=list(self._rubric.steps),
            rubric=[Anchor(score_range=(low, high), expected_outcome=text) for low, high, text in self._rubric.anchors],
            evaluation_params=[SingleTurnParams.INPUT, SingleTurnParams.ACTUAL_OUTPUT],
            model=call,
            async_mode=False,
            evaluation_template=self._template(),
        )
        case = LLMTestCase(
            input=delimited("document", document, mark), actual_output=delimited("summary", summary, mark)
        )
        try:
            score = float(metric.measure(case, _show_indicator=False, _additional_context=mark))
        except Exception as error:  # noqa: BLE001 - what the call raised goes on as it was
            # DeepEval wraps some errors by their wording.
            raise call.failure or error from None
        judged = call.judged
        if judged is None or not math.isfinite(score) or not 0.0 <= score <= 1.0:
            raise CallFailed("judge_bad_answer", f"G-Eval made {score} of the answer", retry=False)
        return Answer(score, judged.reply.reason, judged.odds is not None)


def _one_call(ask: Callable[[str], Judged]) -> Any:
    from deepeval.models import DeepEvalBaseLLM

    class OneCall(DeepEvalBaseLLM):  # type: ignore[misc]
        """A model for one measurement. G-Eval weights the score with the odds itself; they reach it as the
        log-probabilities of one token that is the score, whatever the endpoint's tokenizer makes of a 10.
        """

        judged: Judged | None = None
        failure: CallFailed | None = None

        def load_model(self) -> None:
            """Loads nothing: the endpoint has the model."""

        def get_model_name(self) -> str:
            """A name for DeepEval's own records."""
            return "tersely"

        def generate_raw_response(self, prompt: str, top_logprobs: int = 0) -> tuple[Any, float]:
            """What G-Eval calls; our endpoint chooses the number of alternatives itself."""
            try:
                self.judged = ask(prompt)
            except CallFailed as failure:
                self.failure = failure
                raise
            return _completion(self.judged), 0.0

        def generate(self, prompt: str, schema: Any = None) -> str:
            """Refuses: G-Eval comes here only after a fault in `generate_raw_response`."""
            raise self.failure or RuntimeError("G-Eval did not use generate_raw_response")

        async def a_generate(self, prompt: str, schema: Any = None) -> str:
            """Refuses likewise."""
            return self.generate(prompt, schema)

    return OneCall()


def _completion(judged: Judged) -> Any:
    """The reply as a chat completion that holds exactly the reason and the score, and the odds as one token's."""
    from openai.types.chat import ChatCompletion

    token: dict[str, Any] = {"token": str(judged.reply.score), "logprob": 0.0, "bytes": None}
    odds = [
        {"token": str(score), "logprob": math.log(share), "bytes": None} for score, share in (judged.odds or {}).items()
    ]
    content = json.dumps({"reason": judged.reply.reason, "score": judged.reply.score})
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": content},
        "logprobs": {"content": [{**token, "top_logprobs": odds}]} if odds else None,
    }
    return ChatCompletion.model_validate(
        {"id": "one", "object": "chat.completion", "created": 0, "model": "one", "choices": [choice]}
    )
