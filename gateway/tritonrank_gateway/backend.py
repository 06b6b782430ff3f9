"""The Backend that asks one Triton, over gRPC, through our own asyncio client."""

from tritonrank_client import AsyncRankClient, ModelInfo, Retry

from tritonrank_gateway.ranking import Ranking, RankRequest

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
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "rank",
        timeout: float = 10.0,
        retry: Retry = PASS_REFUSALS_ON,
        cancel_abandoned: bool = False,
    ) -> None:
        self.url = url
        self._client = AsyncRankClient(
            url, model=model, timeout=timeout, retry=retry, cancel_abandoned=cancel_abandoned
        )

    async def rank(self, request: RankRequest) -> Ranking:
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
