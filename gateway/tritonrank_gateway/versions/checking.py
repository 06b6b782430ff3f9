"""Whether a version may take a role: its Tritons are asked the golden request before any user's."""

import asyncio
import time
from dataclasses import dataclass

from tritonrank_client import RankError

from tritonrank_gateway.golden import WrongAnswerError
from tritonrank_gateway.ranking import Backend
from tritonrank_gateway.versions.backend_metrics import Opened
from tritonrank_gateway.versions.wire import Version

ANSWER_SECONDS = 5.0
"""That a golden answer may take: the first ones of a version that was just loaded are slow."""
READY_SECONDS = 20.0
AGAIN_SECONDS = 0.2


class NotTakenError(Exception):
    """A version that may not take a role; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    name: str
    wrong: str = ""
    away: str = ""


async def check(version: Version, opened: Opened, seconds: float = READY_SECONDS) -> None:
    """Wait until a version answers as it should.

    One of its Tritons that is right is enough, so that a dead machine does not hold up a release: those that are away
    are out of rotation until they are back. One that answers something else is a reason to stop.

    Raises:
        NotTakenError: an answer is wrong, or none came in time.
    """
    until = time.monotonic() + seconds
    while True:
        asked: list[tuple[str, Backend]] = [(version.triton[0], opened.backend)]
        if opened.pool is not None:
            await opened.pool.ready()  # where its addresses are looked up, it begins with that
            asked = [(replica.name, replica.backend) for replica in opened.pool.replicas]
        verdicts = await asyncio.gather(*(_ask(name, backend, version, opened) for name, backend in asked))
        if wrong := [one for one in verdicts if one.wrong]:
            raise NotTakenError(
                f"{version.model} at {wrong[0].name}: {wrong[0].wrong}. What serves stays; load the version that "
                "golden.json belongs to, then send this again"
            )
        if any(not one.away for one in verdicts):
            break
        if time.monotonic() > until:
            said = "; ".join(f"{one.name}: {one.away}" for one in verdicts[:3]) or "no address was found"
            raise NotTakenError(
                f"{version.model} does not answer ({said}). What serves stays; load the version in its Tritons, then "
                "send this again"
            )
        await asyncio.sleep(AGAIN_SECONDS)
    if opened.pool is not None:
        away = {one.name for one in verdicts if one.away}
        await asyncio.gather(*(opened.pool.probe(one) for one in opened.pool.replicas if one.name in away))


async def _ask(name: str, backend: Backend, version: Version, opened: Opened) -> _Verdict:
    golden = opened.golden
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await backend.rank(golden.request(ANSWER_SECONDS))
        golden.check(answer)
    except WrongAnswerError as error:
        return _Verdict(name, wrong=str(error))
    except TimeoutError:
        return _Verdict(name, away=f"no answer within {ANSWER_SECONDS:g} s")
    except RankError as error:
        return _Verdict(name, away=str(error))
    if golden.artifact and answer.artifact != golden.artifact:
        return _Verdict(name, wrong=f"it is artifact {answer.artifact}, and {version.golden} is of {golden.artifact}")
    return _Verdict(name)
