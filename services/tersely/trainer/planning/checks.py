"""What only shows when recipe, model and prompts are seen together, and can't work. Nothing is loaded for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tersely.config import Recipe
from tersely.data.prompts import prepare_prompt
from tersely.data.records import Record
from tersely.errors import ConfigValue
from tersely.models.device import choose_device
from tersely.models.tokenizer import PolicyTokenizer
from tersely.trainer.planning.facts import ModelFacts, is_target, read_facts

_LONGEST_LOOKED_AT = 16


def check_before_start(
    recipe: Recipe, model_folder: Path, tokenizer: PolicyTokenizer, records: Sequence[Record]
) -> None:
    """All checks of this module, for a trainer that has written nothing yet.

    Of the prompts only those with the longest documents are looked at.

    Raises:
        ConfigValue: naming the key and what to set it to.
        ModelInvalid: The installed transformers does not know the model.
    """
    choose_device(recipe.learner.device, "learner.device")
    facts = read_facts(model_folder)
    check_against_model(recipe, facts)
    longest = sorted(records, key=lambda record: len(record.document))[-_LONGEST_LOOKED_AT:]
    target = recipe.length.longest_target
    prompts = (prepare_prompt(record, tokenizer, recipe.data, target) for record in longest)
    check_prompts(recipe, facts, max(len(prompt.token_ids) for prompt in prompts))


def check_against_model(recipe: Recipe, facts: ModelFacts) -> None:
    """Holds a recipe against its model.

    Raises:
        ConfigValue: naming the key and what to set it to.
    """
    _check_context(recipe, facts)
    _check_lora(recipe, facts)
    if recipe.rollout.workers and recipe.rollout.engine == "torch" and facts.unlike_full_attention:
        raise ConfigValue(
            f"model.name: the torch engine needs full attention in all layers; {facts.model_type} has layers of kind"
            f" {', '.join(facts.unlike_full_attention)}.",
            "Set model.name to a Llama- or Qwen2-like model, or rollout.engine to an engine that runs this one.",
        )


def check_prompts(recipe: Recipe, facts: ModelFacts, longest_prompt: int) -> None:
    """Holds a recipe against the length of its prompts, in tokens.

    Raises:
        ConfigValue: naming the key and what to set it to.
    """
    limit = recipe.max_completion_tokens
    if facts.context is not None and longest_prompt + limit > facts.context:
        over = longest_prompt + limit - facts.context
        raise ConfigValue(
            f"data.max_document_tokens is {recipe.data.max_document_tokens}: the longest prompt has {longest_prompt}"
            f" tokens, and with completions of up to {limit} that is {over} more than the model's context of"
            f" {facts.context}.",
            _shorter_documents(recipe, over),
        )
    least = longest_prompt + limit
    # A single row is never cut; only a recipe that asks for the impossible by name is refused.
    asked = "micro_batch_tokens" in recipe.learner.model_fields_set
    if asked and recipe.learner.micro_batch_tokens < least:
        raise ConfigValue(
            f"learner.micro_batch_tokens is {recipe.learner.micro_batch_tokens}, but the longest prompt"
            f" ({longest_prompt} tokens) with one completion at the limit ({limit}) has {least} positions.",
            f"Set learner.micro_batch_tokens to {least} or more; learner.recompute = true saves memory in another way.",
        )


def _check_context(recipe: Recipe, facts: ModelFacts) -> None:
    limit, context = recipe.max_completion_tokens, facts.context
    if context is None:
        return
    if limit >= context:
        key = "length.target_range" if recipe.length.target_range else "length.target_tokens"
        if recipe.length.max_completion_tokens is not None:
            key = "length.max_completion_tokens"
        raise ConfigValue(
            f"{key}: completions of up to {limit} tokens leave no room for a prompt in the model's context of"
            f" {context} tokens.",
            f"Set a target of at most {max(1, context // 4)} tokens, or choose a model with a longer context.",
        )
    over = recipe.data.max_document_tokens + limit - context
    if over > 0:
        raise ConfigValue(
            f"data.max_document_tokens is {recipe.data.max_document_tokens}: documents of that length and completions"
            f" of up to {limit} tokens are longer than the model's context of {context} tokens.",
            _shorter_documents(recipe, over),
        )


def _shorter_documents(recipe: Recipe, over: int) -> str:
    fitting = recipe.data.max_document_tokens - over
    if fitting < 16:
        return "Choose a model with a longer context, or a shorter data.prompt and target."
    return f"Set data.max_document_tokens to {fitting} or less, or choose a model with a longer context."


def _check_lora(recipe: Recipe, facts: ModelFacts) -> None:
    if recipe.learner.lora is None:
        return
    there = sorted({name.split(".")[-2] for name in facts.linear_sizes})
    for target in recipe.learner.lora.targets:
        if not any(is_target(name, (target,)) for name in facts.linear_sizes):
            raise ConfigValue(
                f"learner.lora.targets: the model has no layers named {target!r}.", f"Use some of: {', '.join(there)}."
            )
