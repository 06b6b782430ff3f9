"""GET and DELETE /v1/users/{user_id}: everything that is kept of a user, to be read or to be erased."""

import asyncio
from typing import Any

from fastapi import APIRouter

from tritonrank_gateway.call import Call
from tritonrank_gateway.endpoint import Route, add_route
from tritonrank_gateway.recommend.access import DIALECT, keeper_of, refused
from tritonrank_gateway.refusal import Refusal

router = APIRouter()
LONGEST_ID = 256


async def export_user(call: Call) -> dict[str, Any]:
    recommender, user_id = keeper_of(call), _user_id(call)
    asked = call.http.query_params
    if set(asked) - {"log"} or asked.get("log", "false") not in ("true", "false"):
        raise Refusal("invalid", "expected no parameter, or log=true: what the training log holds of the user as well")
    with refused():
        try:
            async with asyncio.timeout(call.seconds_left):
                return await recommender.users.export(user_id, with_log=asked.get("log") == "true")
        except TimeoutError:
            raise Refusal(
                "deadline", "not all was read before the deadline; allow more time, or ask without log"
            ) from None
        except OSError as error:
            raise Refusal("unavailable", "a file of the training log cannot be read now") from error


async def erase_user(call: Call) -> dict[str, Any]:
    recommender, user_id = keeper_of(call), _user_id(call)
    with refused():
        try:
            async with asyncio.timeout(call.seconds_left):
                rows, log = await recommender.users.erase(user_id)
        except TimeoutError:
            said = "the deadline passed before all was erased; send the request again, it goes on where it was"
            raise Refusal("unavailable", said) from None
    return {"erased": rows, "log": log}


def _user_id(call: Call) -> str:
    user_id = str(call.http.path_params["user_id"])
    if not 0 < len(user_id) <= LONGEST_ID:
        raise Refusal("invalid", f"user_id: expected 1 to {LONGEST_ID} characters")
    return user_id


PATH = "/v1/users/{user_id:path}"
add_route(router, PATH, Route(DIALECT, export_user, role="admin"), None, "What is kept of a user", method="GET")
add_route(router, PATH, Route(DIALECT, erase_user, role="admin"), None, "Erase a user", method="DELETE")
