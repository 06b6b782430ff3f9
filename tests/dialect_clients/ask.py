"""Ranks through real clients of other servers, unpatched: each is given a URL, and nothing else is changed.

Runs in an environment that has the clients and nothing of ours:

    python ask.py URL NAME ... < {"query": ..., "texts": [...], "key": ...}

Prints one JSON object: by name the ranking as [[index, score], ...], or {"error": ...}.
"""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

Ranking = list[tuple[int, float]]
CLIENTS: dict[str, Callable[[str, str, list[str], str], Ranking]] = {}


def client(ask: Callable[[str, str, list[str], str], Ranking]) -> Callable[[str, str, list[str], str], Ranking]:
    CLIENTS[ask.__name__] = ask
    return ask


def by_text(found: list[tuple[str, float]], texts: list[str]) -> Ranking:
    """For clients that give back documents: their positions."""
    return [(texts.index(text), score) for text, score in found]


# --- cohere ----------------------------------------------------------------------------------------------------------


@client
def cohere_v1(url: str, query: str, texts: list[str], key: str) -> Ranking:
    import cohere

    answer = cohere.Client(key, base_url=url).rerank(
        model="any", query=query, documents=texts, top_n=3, return_documents=True
    )
    assert [place.document.text for place in answer.results] == [texts[place.index] for place in answer.results]
    return [(place.index, place.relevance_score) for place in answer.results]


@client
def cohere_v2(url: str, query: str, texts: list[str], key: str) -> Ranking:
    import cohere

    answer = cohere.ClientV2(key, base_url=url).rerank(model="any", query=query, documents=texts)
    assert answer.meta.billed_units.search_units == 1
    return [(place.index, place.relevance_score) for place in answer.results]


@client
def cohere_v2_asyncio(url: str, query: str, texts: list[str], key: str) -> Ranking:
    import asyncio

    import cohere

    async def ask() -> Any:
        return await cohere.AsyncClientV2(key, base_url=url).rerank(
            model="any", query=query, documents=texts, max_tokens_per_doc=4_096
        )

    return [(place.index, place.relevance_score) for place in asyncio.run(ask()).results]


@client
def cohere_refusal(url: str, query: str, texts: list[str], key: str) -> Ranking:
    import cohere
    from cohere.errors import BadRequestError

    told = ""
    try:
        cohere.ClientV2(key, base_url=url).rerank(model="any", query=query, documents=[])
    except BadRequestError as refusal:
        told = refusal.body["message"]
    assert "documents" in told, "no documents, and no error that says so"
    return []


# --- litellm ---------------------------------------------------------------------------------------------------------


def _litellm(model: str, url: str, query: str, texts: list[str], key: str, **more: Any) -> Ranking:
    import litellm

    answer = litellm.rerank(model=model, query=query, documents=texts, top_n=3, api_base=url, api_key=key, **more)
    return [(place["index"], place["relevance_score"]) for place in answer.results]


@client
def litellm_cohere(url: str, query: str, texts: list[str], key: str) -> Ranking:
    return _litellm("cohere/rerank-v3.5", url + "/v2/rerank", query, texts, key)


@client
def litellm_jina(url: str, query: str, texts: list[str], key: str) -> Ranking:
    return _litellm("jina_ai/jina-reranker-v2-base-multilingual", url, query, texts, key)


@client
def litellm_vllm(url: str, query: str, texts: list[str], key: str) -> Ranking:
    return _litellm("hosted_vllm/any", url, query, texts, key)


@client
def litellm_tei(url: str, query: str, texts: list[str], key: str) -> Ranking:
    return _litellm("huggingface/any/model", url, query, texts, key)


@client
def litellm_nim(url: str, query: str, texts: list[str], key: str) -> Ranking:
    return _litellm("nvidia_nim/nvidia/any", url, query, texts, key)


# --- langchain -------------------------------------------------------------------------------------------------------


def _langchain(compressor: Any, query: str, texts: list[str]) -> Ranking:
    from langchain_core.documents import Document
    from langchain_core.documents.compressor import BaseDocumentCompressor

    assert isinstance(compressor, BaseDocumentCompressor)
    found = compressor.compress_documents([Document(page_content=text) for text in texts], query)
    return by_text([(one.page_content, one.metadata["relevance_score"]) for one in found], texts)


@client
def langchain_cohere(url: str, query: str, texts: list[str], key: str) -> Ranking:
    from langchain_cohere import CohereRerank

    return _langchain(CohereRerank(model="any", base_url=url, cohere_api_key=key, top_n=3), query, texts)


@client
def langchain_nvidia(url: str, query: str, texts: list[str], key: str) -> Ranking:
    from langchain_nvidia_ai_endpoints import NVIDIARerank

    return _langchain(NVIDIARerank(base_url=url + "/v1", model="rank", api_key=key, top_n=3), query, texts)


# --- llama-index -----------------------------------------------------------------------------------------------------


def _llama_index(postprocessor: Any, query: str, texts: list[str]) -> Ranking:
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    found = postprocessor.postprocess_nodes(nodes, query_bundle=QueryBundle(query))
    return by_text([(one.node.text, one.score) for one in found], texts)


@client
def llama_index_cohere(url: str, query: str, texts: list[str], key: str) -> Ranking:
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    return _llama_index(CohereRerank(base_url=url, api_key=key, top_n=3, model="any"), query, texts)


@client
def llama_index_jina(url: str, query: str, texts: list[str], key: str) -> Ranking:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    return _llama_index(JinaRerank(base_url=url + "/v1", api_key=key, top_n=3), query, texts)


@client
def llama_index_tei(url: str, query: str, texts: list[str], key: str) -> Ranking:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    rank = TextEmbeddingInference(base_url=url, top_n=3, auth_token=f"Bearer {key}")
    return _llama_index(rank, query, texts)


@client
def llama_index_nvidia(url: str, query: str, texts: list[str], key: str) -> Ranking:
    from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

    rank = NVIDIARerank(base_url=url + "/v1", model="rank", api_key=key, top_n=3)
    return _llama_index(rank, query, texts)


# --- haystack --------------------------------------------------------------------------------------------------------


def _haystack(ranker: Any, query: str, texts: list[str]) -> Ranking:
    from haystack import Document

    found = ranker.run(query=query, documents=[Document(content=text) for text in texts])["documents"]
    return by_text([(one.content, one.score) for one in found], texts)


@client
def haystack_cohere(url: str, query: str, texts: list[str], key: str) -> Ranking:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.cohere import CohereRanker

    return _haystack(CohereRanker(api_base_url=url, api_key=Secret.from_token(key), top_k=3), query, texts)


@client
def haystack_jina(url: str, query: str, texts: list[str], key: str) -> Ranking:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.jina import JinaRanker

    ranker = JinaRanker(base_url=url + "/v1/rerank", api_key=Secret.from_token(key), top_k=3)
    return _haystack(ranker, query, texts)


@client
def haystack_tei(url: str, query: str, texts: list[str], key: str) -> Ranking:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    return _haystack(HuggingFaceTEIRanker(url=url, top_k=3, token=Secret.from_token(key)), query, texts)


# --- others ----------------------------------------------------------------------------------------------------------


def _rerankers(provider: str, url: str, query: str, texts: list[str], key: str) -> Ranking:
    from rerankers import Reranker

    ranker = Reranker("any", model_type=provider, api_key=key, url=url)
    return [
        (one.doc_id, one.score) for one in ranker.rank(query=query, docs=texts, doc_ids=[*range(len(texts))]).results
    ]


@client
def rerankers_cohere(url: str, query: str, texts: list[str], key: str) -> Ranking:
    return _rerankers("cohere", url + "/v1/rerank", query, texts, key)


@client
def rerankers_jina(url: str, query: str, texts: list[str], key: str) -> Ranking:
    return _rerankers("jina", url + "/v1/rerank", query, texts, key)


@client
def rerankers_tei(url: str, query: str, texts: list[str], key: str) -> Ranking:
    return _rerankers("text-embeddings-inference", url + "/rerank", query, texts, key)


@client
def huggingface_hub(url: str, query: str, texts: list[str], key: str) -> Ranking:
    from huggingface_hub import InferenceClient

    # It has no rerank; text classification is how it asks a TEI that serves a ranker, one text at a time. Of TEI's
    # answer, which is one list less deep than that of Hugging Face's own servers, it gives back the first element.
    hub = InferenceClient(model=url + "/predict", token=key)
    scores = [hub.text_classification(text).score for text in texts]
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def main() -> None:
    url, names = sys.argv[1], sys.argv[2:]
    asked = json.load(sys.stdin)
    answers: dict[str, Any] = {}
    for name in names:
        try:
            answers[name] = CLIENTS[name](url, asked["query"], asked["texts"], asked["key"])
        except BaseException as error:  # noqa: BLE001 - the test shows it
            answers[name] = {"error": f"{type(error).__name__}: {error}\n{traceback.format_exc()[-1500:]}"}
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    main()
