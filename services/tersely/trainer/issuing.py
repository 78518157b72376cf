"""From an issue number to a PromptGroup: a pure function of recipe, data and run."""

from __future__ import annotations

from dataclasses import dataclass, field

from tersely.config import Recipe
from tersely.data.order import prompt_index
from tersely.data.prompts import PreparedPrompt, PromptSource
from tersely.data.targets import draw_target
from tersely.errors import CheckpointInvalid
from tersely.grpo.seeds import group_id, group_seed
from tersely.trainer.ledger import Issue
from tersely.trainer.ring import EVALUATION_PREFIX
from tersely.types import IssueNumber, RunId, WeightsLabel
from tersely.v1 import common_pb2, group_pb2


@dataclass(frozen=True, slots=True)
class Issuer:
    """Makes the groups of one run.

    Attributes:
        run_id: The run.
        incarnation: Of the trainer that sends.
        recipe: Settings.
        prompts: Training prompts, in file order; each issue draws the length it asks for.
        stop_token_ids: Ids that end a completion.
    """

    run_id: RunId
    incarnation: int
    recipe: Recipe
    prompts: PromptSource
    stop_token_ids: tuple[int, ...]
    _places: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def issue(self, number: IssueNumber) -> Issue:
        """Which prompt has this number, and the id of its group."""
        prompt_id = self.prompts.prompt_id(self._index(number))
        return Issue(group_id(self.run_id, number, prompt_id), number, prompt_id)

    def issue_again(self, quarantined: Issue, number: IssueNumber) -> Issue:
        """The prompt of a quarantined group under a new number, in place of the one that has this number."""
        prompt_id = quarantined.prompt_id
        return Issue(group_id(self.run_id, number, prompt_id), number, prompt_id, quarantined.group_id)

    def training_group(self, issue: Issue, required: WeightsLabel | None) -> group_pb2.PromptGroup:
        """The message for an issue; `required` names the weights in a synchronous run."""
        target = draw_target(self.recipe.length.targets, self.recipe.run.seed, issue.issue_number, issue.prompt_id)
        prompt = self.prompts.prompt(self._place(issue), target)
        group = self._group(prompt, self.recipe.run.group_size, required)
        group.group_id = issue.group_id
        group.issue_number = issue.issue_number
        group.purpose = common_pb2.GROUP_PURPOSE_TRAINING
        group.sampling.temperature = self.recipe.sampling.temperature
        group.sampling.seed = group_seed(self.recipe.run.seed, issue.issue_number, issue.prompt_id)
        return group

    def evaluation_group(
        self, name: str, index: int, prompt: PreparedPrompt, required: WeightsLabel
    ) -> group_pb2.PromptGroup:
        """A held-out prompt: one greedy completion, then the sampled ones."""
        evaluation = self.recipe.evaluation
        group = self._group(prompt, 1 + evaluation.samples, required)
        group.group_id = f"{EVALUATION_PREFIX}{name}-{group_id(self.run_id, index, prompt.prompt_id)}"
        group.issue_number = index
        group.purpose = common_pb2.GROUP_PURPOSE_EVALUATION
        group.sampling.greedy_samples = 1
        group.sampling.temperature = 1.0
        group.sampling.seed = group_seed(evaluation.seed, index, prompt.prompt_id)
        return group

    def _index(self, number: IssueNumber) -> int:
        return prompt_index(self.recipe.run.seed, number, len(self.prompts))

    def _place(self, issue: Issue) -> int:
        if not issue.replay_of:
            return self._index(issue.issue_number)
        if not self._places:
            self._places.update((self.prompts.prompt_id(index), index) for index in range(len(self.prompts)))
        if issue.prompt_id not in self._places:
            raise CheckpointInvalid(
                f"The data no longer hold the record {issue.prompt_id!r}, which is to be tried again.",
                "Restore the data that the run was begun with.",
            )
        return self._places[issue.prompt_id]

    def _group(self, prompt: PreparedPrompt, size: int, required: WeightsLabel | None) -> group_pb2.PromptGroup:
        group = group_pb2.PromptGroup(
            run_id=self.run_id,
            prompt_id=prompt.prompt_id,
            prompt_token_ids=prompt.token_ids,
            group_size=size,
            stop_token_ids=self.stop_token_ids,
            target_tokens=prompt.target_tokens,
            document=prompt.document,
            reference=prompt.reference,
            document_tokens_cut=prompt.document_tokens_cut,
            trainer_incarnation=self.incarnation,
        )
        group.sampling.max_completion_tokens = self.recipe.max_completion_tokens
        if required is not None:
            group.required_weights.CopyFrom(required.to_proto())
        return group
