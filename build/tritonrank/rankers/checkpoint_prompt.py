"""Which prompt a language model's checkpoint ranks with, and the frame in tokens that is made of it.

Asked in this order: the recipe; a text.json beside the weights; the chat template, where it has places for a query and
a document, as sentence-transformers' rerankers do (``LogitScore`` beside it names the answers' tokens); the name of a
published model. A base that is trained here has a plain prompt otherwise, and a ready checkpoint is refused: without
its prompt a language model's scores are noise.

A chat template is a program of the checkpoint's. Transformers runs it in Jinja's sandbox, which reaches no file and no
attribute of Python; it is run once, with two marks in place of the texts, and what comes out is cut at the marks.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from tritonrank_runtime.frame import Frame
from tritonrank_runtime.text import RULES_FILE, TextRules

from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.rankers.checkpoint_decoder import LOGIT_SCORE, is_language_model
from tritonrank.rankers.checkpoint_files import CONFIG, SENTENCE_TRANSFORMERS, modules_of, read_object
from tritonrank.rankers.checkpoint_gguf import gguf_file
from tritonrank.rankers.checkpoint_source import folder_of
from tritonrank.rankers.pretrained import load_tokenizer
from tritonrank.rankers.prompts import (
    ANSWERS,
    DOCUMENT,
    NAMES,
    PLAIN,
    QUERY,
    frame_without_history,
    prompt_named_like,
    prompt_of,
)
from tritonrank.recipe import ModelSettings
from tritonrank.system.quiet import quiet_libraries

_QUERY_MARK, _DOCUMENT_MARK = "\ue000query\ue000", "\ue000document\ue000"
"""Of the private use area, which no template writes."""


def decoder_frame(model: ModelSettings) -> Frame:
    """The frame of a recipe's decoder, with the ids of its answers.

    Raises:
        ArtifactError: nobody says how the checkpoint's prompt reads, or its answers are no tokens of its vocabulary.
        RecipeError: the recipe's own prompt has a fault.
    """
    folder = folder_of(model.source, model.revision, weights=False)
    own = _own_frame(folder)
    if own is not None and model.template is None:
        if named := [key for key in ("instruction", "answers") if getattr(model, key) is not None]:
            raise RecipeError(
                f"model.{named[0]}: {model.source} was made with its prompt; name model.template as well, which "
                "replaces it"
            )
        return own
    tokenizer = load_tokenizer(model.source, model.revision)
    found, answers = _found(model, folder, tokenizer)
    # Transformers' tokenizer of a GGUF file begins every text with a token, whatever the file says of that.
    is_gguf = gguf_file(model.source, folder) is not None
    frame = found if is_gguf else _with_special_tokens(found, tokenizer.backend_tokenizer)
    if not is_language_model(model.source, folder):  # its head gives the score
        return frame
    if model.answers is not None:
        answers = model.answers
    rust = tokenizer.backend_tokenizer
    ids = [one if isinstance(one, int) else _answer_id(model.source, rust, one) for one in answers or ()]
    yes, no = [*ids, None, None][:2]
    return replace(frame, yes=yes, no=no)


def _own_frame(folder: Path) -> Frame | None:
    return TextRules.load(folder).frame if os.access(folder / RULES_FILE, os.R_OK) else None


def _found(
    model: ModelSettings, folder: Path, tokenizer: PreTrainedTokenizerFast
) -> tuple[Frame, Sequence[str | int] | None]:
    """The frame, and its answers: words, or ids where the checkpoint has those."""
    config = read_object(folder / CONFIG)
    if model.template is not None:
        prompt = prompt_of(model.template)
        frame = prompt.told(model.instruction).frame()
        if (
            prompt.answers is None
            and model.answers is None
            and model.checkpoint
            and is_language_model(model.source, folder)
        ):
            raise RecipeError(
                f"model.answers: {model.source} is a language model; with a prompt of your own name the words whose "
                'logits are the score, such as ["yes", "no"], or [" yes", " no"] where a blank has to stand before them'
            )
        return frame, prompt.answers
    if (chat := _chat_frame(model, folder, tokenizer)) is not None:
        return chat, _logit_score(folder) or ANSWERS
    names = [model.source, str(folder.name), str(config.get("_name_or_path", ""))]
    prompt_named = prompt_named_like(names, str(config.get("model_type")))
    if prompt_named is None and model.checkpoint is None:
        prompt_named = PLAIN
    if prompt_named is not None:
        return prompt_named.told(model.instruction).frame(), _logit_score(folder) or prompt_named.answers
    raise ArtifactError(
        f"{model.source}: no prompt is known for it, and without the one it was trained with its scores are noise. It "
        "has no chat template with places for a query and a document, and its name is none of a published reranker. "
        f"Name the prompt as model.template: {', '.join(NAMES)}, or the prompt itself with {QUERY} and {DOCUMENT} "
        "where they go (docs/decoders.md). Or name this one as model.base, to fine-tune it"
    )


def _chat_frame(model: ModelSettings, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Frame | None:
    """What the checkpoint's chat template makes of a query and a document; None if it has no places for them."""
    template = str(tokenizer.chat_template or "")
    if not all(re.search(rf"""["']{role}["']""", template) for role in ("query", "document")):
        return None  # templates of conversations write any role, and know none of these
    settings = read_object(folder / SENTENCE_TRANSFORMERS)
    prompts, default = settings.get("prompts"), settings.get("default_prompt_name")
    published = prompts.get(default) if isinstance(prompts, dict) else None
    for structured in (False, True):
        parts = _cut_chat(tokenizer, model.instruction or published, structured=structured)
        if parts is None:
            continue
        if model.instruction and parts == _cut_chat(tokenizer, None, structured=structured):
            raise RecipeError(
                f"model.instruction: the chat template of {model.source} has no place for one; write the whole prompt "
                "as model.template"
            )
        return frame_without_history(*parts, name="chat template")
    return None


def _cut_chat(tokenizer: PreTrainedTokenizerFast, instruction: Any, *, structured: bool) -> tuple[str, str, str] | None:
    """What a chat template writes before, between and behind the two texts; None if it does not take them."""
    pair = [("query", _QUERY_MARK), ("document", _DOCUMENT_MARK)]
    texts = [("system", instruction), *pair] if isinstance(instruction, str) and instruction else pair
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if structured else text} for role, text in texts
    ]
    try:
        with quiet_libraries():
            written = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # noqa: BLE001 - templates of conversations refuse other roles with errors of their own making
        return None
    before, query, rest = written.partition(_QUERY_MARK)
    between, document, after = rest.partition(_DOCUMENT_MARK)
    is_whole = (
        query and document and not any(mark in before + between + after for mark in (_QUERY_MARK, _DOCUMENT_MARK))
    )
    return (before, between, after) if is_whole else None


def _logit_score(folder: Path) -> list[int] | None:
    """The ids of the answers that sentence-transformers' last module names; None where there is none."""
    for module in modules_of(folder):
        if str(module.get("type")).rpartition(".")[2] == LOGIT_SCORE:
            path = folder / str(module.get("path") or "") / CONFIG
            config = read_object(path)
            yes, no = config.get("true_token_id"), config.get("false_token_id")
            if not isinstance(yes, int) or not isinstance(no, int | None):
                raise ArtifactError(
                    f"{path}: true_token_id, and false_token_id unless it is null, are expected to be ids of tokens. "
                    "Download it again"
                )
            return [yes] if no is None else [yes, no]
    return None


def _answer_id(name: str, tokenizer: Tokenizer, answer: str) -> int:
    found = tokenizer.encode(answer, add_special_tokens=False).ids
    if len(found) != 1:
        raise ArtifactError(
            f"{name}: the answer {answer!r} is {len(found)} tokens of its vocabulary; a score is read from one. Name "
            "words of one token as model.answers"
        )
    return int(found[0])


def _with_special_tokens(frame: Frame, tokenizer: Tokenizer) -> Frame:
    """With what the tokenizer itself puts around every text, such as <s>, unless the prompt begins with such a one."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    if any(token and frame.before.startswith(token) for token in special):
        return frame
    around, alone = (tokenizer.encode("a", add_special_tokens=add) for add in (True, False))
    names = [tokenizer.id_to_token(token) for token in around.ids]
    count = len(alone.ids)
    start = next((place for place in range(len(names)) if around.ids[place : place + count] == alone.ids), 0)
    return replace(
        frame, before="".join(names[:start]) + frame.before, after=frame.after + "".join(names[start + count :])
    )
