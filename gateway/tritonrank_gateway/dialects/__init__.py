"""The dialects, one file each; `shared` has the paths that two servers use for different bodies."""

from fastapi import APIRouter

from tritonrank_gateway.dialects import cohere, nim, openai, own, shared, tei, vllm


def routers() -> list[APIRouter]:
    """The routes of all dialects."""
    return [own.router, shared.router, tei.router, cohere.router, vllm.router, nim.router, openai.router]
