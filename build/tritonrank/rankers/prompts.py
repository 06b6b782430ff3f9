"""The prompts that language models were trained to rank with: published ones by name, and a recipe's own.

A prompt is one text with places for its parts, ``{instruction}``, ``{query}``, ``{history}`` and ``{document}``. What
query and history say is read once per request, so they come first; everything behind ``{document}`` is the tail.
No published prompt has a place for a history. It is then written on a line of its own below the query, under a heading
made like the query's; a request without a history has the published prompt to the letter.

Sources: the model cards of Qwen3-Reranker and of bge-reranker-v2-gemma, and the inference code of mxbai-rerank (V2) and
FlagEmbedding (decoder-only rerankers).
"""

import re
from dataclasses import dataclass, replace

from tritonrank_runtime.frame import Frame

from tritonrank.errors import RecipeError

INSTRUCTION, QUERY, HISTORY, DOCUMENT = "{instruction}", "{query}", "{history}", "{document}"
ANSWERS = ("yes", "no")
"""Of a chat template beside which nothing names the answers, as sentence-transformers has it."""
_PLACES = (INSTRUCTION, QUERY, HISTORY, DOCUMENT)
_HISTORY_HEADING = "\nHistory: "
SEPARATOR = ";"
"""Between two items of a history, before the blanks or the newline that their heading ends with."""


@dataclass(frozen=True)
class Prompt:
    """A prompt before its tokens are known.

    Args:
        name: in recipes and in text.json; "" of a recipe's own.
        template: with its places.
        answers: words whose logits make the score: the first one's less the second one's, or one word's alone. None: a
            scalar head does.
        instruction: what stands in its place where nobody says otherwise.
        instruction_line: how an instruction is written.
        joined: whether the published model reads it as one string (``Frame.joined``).
        families: ``model_type`` of checkpoints that were published with it.
        named: what such a checkpoint's name holds.
    """

    name: str
    template: str
    answers: tuple[str, ...] | None = None
    instruction: str = ""
    instruction_line: str = INSTRUCTION
    joined: bool = True
    families: tuple[str, ...] = ()
    named: str = ""

    def told(self, instruction: str | None) -> "Prompt":
        """The prompt with an instruction of the recipe's own.

        Raises:
            RecipeError: it has no place for one.
        """
        if instruction is None:
            return self
        if INSTRUCTION not in self.template:
            raise RecipeError(
                f"model.instruction: the template has no {INSTRUCTION} for it; write it into model.template itself"
            )
        return replace(self, instruction=instruction)

    def frame(self) -> Frame:
        """Cut at its places; the answers' tokens come later.

        Raises:
            RecipeError: a place is missing, or stands where it cannot.
        """
        line = self.instruction_line.replace(INSTRUCTION, self.instruction) if self.instruction else ""
        parts = _cut(self.template)
        parts = {place: text.replace(INSTRUCTION, line) for place, text in parts.items()}
        before, after = parts["before"], parts[DOCUMENT]
        if QUERY in parts and HISTORY not in parts:
            return frame_without_history(before, parts[QUERY], after, joined=self.joined, name=self.name)
        if QUERY in parts:
            heading = parts[QUERY]
            return Frame(before, parts[HISTORY], after, heading, _separator(heading), self.joined, self.name)
        return Frame(before, parts[HISTORY], after, "", _separator(before), self.joined, self.name)


PLAIN = Prompt(
    "plain",
    f"Query: {QUERY}\nHistory: {HISTORY}\nDocument: {DOCUMENT}\nDoes the document suit query and history, yes or no? "
    "Answer:",
    answers=(" yes", " no"),
)
"""Of a base that is fine-tuned here, where the recipe says nothing."""
PUBLISHED = (
    Prompt(
        "qwen3-reranker",
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: '
        f"{INSTRUCTION}\n<Query>: {QUERY}\n<Document>: {DOCUMENT}<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n",
        answers=("yes", "no"),
        instruction="Given a web search query, retrieve relevant passages that answer the query",
        families=("qwen3",),
        named=r"qwen3[-_.]?reranker",
    ),
    Prompt(
        "mxbai-rerank-v2",
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{INSTRUCTION}query: {QUERY}\ndocument: {DOCUMENT}\nYou are a search relevance expert who "
        "evaluates how well documents match search queries. For each query-document pair, carefully analyze the "
        "semantic relationship between them, then provide your binary relevance judgment (0 for not relevant, 1 for "
        "relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n",
        answers=("1", "0"),
        instruction_line=f"instruction: {INSTRUCTION}\n",
        joined=False,
        families=("qwen2",),
        named=r"mxbai[-_.]?rerank[-_.](base|large)[-_.]v2",
    ),
    Prompt(
        "bge-reranker-v2-gemma",
        f"<bos>A: {QUERY}\nB: {DOCUMENT}\n{INSTRUCTION}",
        answers=("Yes",),
        instruction="Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'.",
        joined=False,
        families=("gemma",),
        named=r"bge[-_.]?reranker[-_.]v2[-_.]gemma",
    ),
)
NAMES = tuple(one.name for one in (*PUBLISHED, PLAIN))


def frame_without_history(before: str, between: str, after: str, *, joined: bool = True, name: str = "") -> Frame:
    """The frame of a prompt that was published without a place for a history."""
    heading = _history_heading(before)
    return Frame(before, between, after, heading, _separator(heading), joined, name)


def prompt_of(setting: str) -> Prompt:
    """What ``model.template`` means: a name, or the prompt itself.

    Raises:
        RecipeError: neither.
    """
    found = {one.name: one for one in (*PUBLISHED, PLAIN)}.get(setting)
    if found is None and "{" not in setting:
        raise RecipeError(
            f"model.template: no prompt is called {setting}; those that are known are {', '.join(NAMES)}. Or write the "
            f"prompt itself, with {QUERY} and {DOCUMENT} where they go"
        )
    return found or Prompt("", setting)


def prompt_named_like(names: list[str], family: str) -> Prompt | None:
    """The published prompt of checkpoints with such a name, of that family."""
    return next(
        (
            one
            for one in PUBLISHED
            if family in one.families and any(re.search(one.named, name.lower()) for name in names)
        ),
        None,
    )


def _cut(template: str) -> dict[str, str]:
    """The text before the first place of a text, as ``before``, and behind each of them."""
    found: dict[str, str] = {"before": ""}
    last = "before"
    for part in re.split(r"(\{\w+\})", template):
        if part in (QUERY, HISTORY, DOCUMENT):
            if part in found:
                raise RecipeError(f"model.template: {part} stands there twice")
            found[part], last = "", part
        elif re.fullmatch(r"\{\w+\}", part) and part != INSTRUCTION:
            raise RecipeError(f"model.template: there is no {part}; its places are {', '.join(_PLACES)}")
        else:
            found[last] += part
    if DOCUMENT not in found or not {QUERY, HISTORY} & {*found}:
        raise RecipeError(f"model.template: {DOCUMENT} has to stand in it, and {QUERY}, {HISTORY}, or both")
    if [place for place in found if place != "before"] != [
        place for place in (QUERY, HISTORY, DOCUMENT) if place in found
    ]:
        raise RecipeError(
            f"model.template: {QUERY}, {HISTORY} and {DOCUMENT} have to come in this order: what does not change from "
            "document to document is read once, and so comes first"
        )
    return found


def _history_heading(before: str) -> str:
    """As the query's own heading is written, on a line below the query."""
    line = before.rpartition("\n")[2]
    for query, history in (("query", "history"), ("Query", "History"), ("QUERY", "HISTORY")):
        if query in line:
            return "\n" + line.replace(query, history)
    return _HISTORY_HEADING


def _separator(heading: str) -> str:
    """What stands between two items below such a heading."""
    if heading.endswith("\n"):
        return "\n"
    return SEPARATOR + heading[len(heading.rstrip(" ")) :]
