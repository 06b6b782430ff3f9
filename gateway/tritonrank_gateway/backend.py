"""The Backend that asks one Triton, over gRPC, through our own asyncio client."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from urllib.parse import urlsplit

from tritonrank_client import TLS, AsyncRankClient, ModelInfo, Retry

from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.tracing import NO_TRACING, Value

SpanOf = Callable[[str, Mapping[str, Value]], AbstractContextManager[object]]
"""Makes the span of a call of another server: see `Tracing.step`."""
PASS_REFUSALS_ON = Retry(budget_ratio=0.0, budget_burst=0.0)
"""An overloaded server is not asked again: whoever asked us is told, and decides. An outage is waited out as usual."""


class TritonBackend:
    """See `Backend`.

    Args:
        url: such as grpc://127.0.0.1:8001.
        model: the ensemble.
        timeout: seconds a request without a deadline of its own may take.
        retry: when the client asks again.
        cancel_abandoned: calls that nobody waits for are cancelled on the wire.
        span: makes the span of a call; the client hands it on to Triton.
        tls: certificates, for grpcs.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "rank",
        timeout: float = 10.0,
        retry: Retry = PASS_REFUSALS_ON,
        cancel_abandoned: bool = False,
        span: SpanOf = NO_TRACING.step,
        tls: TLS | None = None,
    ) -> None:
        self.url, self._span = url, span
        address = urlsplit(url)
        self._attributes: dict[str, Value] = {
            "rpc.system": "grpc",
            "rpc.service": "inference.GRPCInferenceService",
            "rpc.method": "ModelInfer",
            "server.address": address.hostname or "",
            "server.port": address.port or 0,
        }
        self._client = AsyncRankClient(
            url, model=model, timeout=timeout, retry=retry, cancel_abandoned=cancel_abandoned, tls=tls
        )

    async def rank(self, request: RankRequest) -> Ranking:
        with self._span("triton", self._attributes):
            result = await self._client.rank(
                query=request.query,
                items=request.items,
                history=request.history,
                item_ids=request.item_ids,
                top_k=request.top_k,
                timeout=request.deadline_s,
                want=request.want,
                max_item_tokens=request.max_item_tokens,
                truncate_left=request.truncate_left,
                strict=request.strict,
            )
        return Ranking(
            indices=[place.index for place in result.ranking],
            logits=[place.score for place in result.ranking],
            artifact=result.artifact,
            context_tokens=result.context_tokens,
            item_tokens=None if result.item_tokens is None else list(result.item_tokens),
            truncated=None if result.truncated is None else list(result.truncated),
            unscored=result.unscored,
            fields=None
            if result.missing_fields is None or result.unknown_fields is None
            else {"missing": result.missing_fields, "unknown": result.unknown_fields},
            unknown_tokens=result.unknown_tokens,
        )

    async def info(self) -> ModelInfo:
        return await self._client.model_info()

    async def ready(self) -> bool:
        return bool(await self._client.health(timeout=2.0))

    async def close(self) -> None:
        await self._client.close()
