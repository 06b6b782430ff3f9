"""Steps ``publish`` and ``release``: an accepted version goes to the model store, and from there to users.

Whether users get it is decided by others: the rules of a rollout (``serve/rollout``), a person, or, where the recipe
says so, nobody: then it is promoted at once. What they decided is written into the ledger when it is known. A version
that was taken back counts as never accepted: the next night starts from the one before, and reads its hours again.
"""

import shlex
import time
from pathlib import Path
from typing import Any

from tritonrank.artifacts.builds import SERVED, RecordedBuild, served_name
from tritonrank.artifacts.promotions import BACK, history, promote
from tritonrank.errors import ServerError
from tritonrank.learn.ledger import Decision, Ledger, Night
from tritonrank.recipe import Recipe
from tritonrank.serve.versions.admin_client import AdminError, PrivateApi
from tritonrank.serve.versions.door import key_of_environment

BY_LEARN = "learn"
LOOK_SECONDS = 2.0
ENDS: dict[str, Decision] = {"done": "live", "back": "back"}
"""Phases of a rollout that has come to its end."""
NOT_NOW = 409


def publish(recipe: Recipe, build: RecordedBuild) -> dict[str, Any]:
    """Bring a build into the model store, where the recipe names one; parts that are there do not travel again.

    Returns:
        source: what a server loads, the store's URL with the version's digest or the build's folder; and of a store
        digest, uploaded_bytes and tag.

    Raises:
        StoreError: the store cannot be reached or refuses; run again, it goes on.
    """
    url = recipe.learn.store
    if url is None:
        build.verify()
        return {"source": str(build.folder.resolve())}
    from tritonrank.artifacts.store.index import Index
    from tritonrank.artifacts.store.objects import open_objects
    from tritonrank.artifacts.store.push import describe, push_version
    from tritonrank.artifacts.store.signing import signer_of

    version = describe(build.folder, recipe.name)
    index = Index(open_objects(url, make=True))
    pushed = push_version(index, build.folder, version, tags=(recipe.learn.tag,), signer=signer_of(None))
    return {
        "source": f"{url if '://' in url else Path(url).expanduser().absolute()}@{version.digest}",
        "digest": version.digest,
        "uploaded_bytes": pushed.bytes,
        "tag": recipe.learn.tag,
    }


def require_key(recipe: Recipe) -> None:
    """See before any work that a rollout can be begun after it.

    Raises:
        ServerError: there is no key for the controller.
    """
    if recipe.learn.release == "rollout":
        key_of_environment()


def release(recipe: Recipe, night: Night, root: Path, controller: str) -> dict[str, Any]:
    """Hand a published version over, and wait for what becomes of it as long as the recipe says.

    Args:
        recipe: its section ``learn`` says how.
        night: which has published.
        root: ``artifacts/<recipe>``.
        controller: URL of the rollout controller.

    Returns:
        by: rollout, promote or none; decision: live, back, or "" where it is not known yet; reason; next: the command
        that takes it back, or goes on.

    Raises:
        ServerError: the controller does not answer or refuses; run again when it does.
    """
    match recipe.learn.release:
        case "rollout":
            return _roll_out(recipe, night, controller)
        case "promote":
            moved = promote(root, str(night.told("build")["build"]), by=BY_LEARN)
            reason = f"build {moved.build.name} is served, {moved.before or 'nothing'} was before"
            back = f"tritonrank back {shlex.quote(str(root))}"
            return {"by": "promote", "decision": "live", "reason": reason, "next": back}
    promote_it = f"tritonrank promote {shlex.quote(str(root))} {night.told('build')['build']}"
    return {"by": "none", "decision": "", "reason": "somebody else decides", "next": promote_it}


def version_name(night: Night) -> str:
    """What a night's version is called while it is rolled out."""
    return f"night-{night.id.lower()}"


def _roll_out(recipe: Recipe, night: Night, controller: str) -> dict[str, Any]:
    api, name, source = (
        PrivateApi(controller, key_of_environment()),
        version_name(night),
        night.told("publish")["source"],
    )
    until = time.monotonic() + 60 * recipe.learn.wait_minutes
    while not _is_begun(api, name, source):
        if time.monotonic() >= until:
            return {
                "by": "rollout",
                "decision": "",
                "reason": "not begun: another rollout is under way",
                "next": f"tritonrank rollout start {shlex.quote(source)} --name {name}",
            }
        time.sleep(LOOK_SECONDS)
    while (state := _state_of(api, name)) is not None and state["is_under_way"] and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    decision = ENDS.get(state["phase"], "") if state else ""
    reason = f"{state['phase']}: {state['reason']}" if state else "another rollout came after it"
    return {"by": "rollout", "decision": decision, "reason": reason, "next": "tritonrank rollout back"}


def _is_begun(api: PrivateApi, name: str, source: str) -> bool:
    """Begin the rollout unless it was before; False while another one is under way."""
    if _state_of(api, name) is not None:
        return True
    try:
        api.ask("POST", "/rollout", {"source": source, "name": name})
    except AdminError as error:
        if error.status != NOT_NOW:
            raise
        return False
    return True


def _state_of(api: PrivateApi, name: str) -> dict[str, Any] | None:
    """The rollout of this version, if it is the last one that there was."""
    rollout: dict[str, Any] | None = api.ask("GET", "/rollout")["rollout"]
    return rollout if rollout is not None and rollout["name"] == name else None


def write_decisions(ledger: Ledger, root: Path, controller: str) -> list[str]:
    """Write down what became of accepted versions since the last look.

    Args:
        ledger: of all nights.
        root: ``artifacts/<recipe>``.
        controller: URL of the rollout controller.

    Returns:
        What was found out, and what could not be, in sentences.
    """
    said, rollout = [], None
    accepted = [night for night in ledger.nights() if night.stands]
    if any(night.told("release").get("by") == "rollout" for night in accepted[-1:]):
        try:
            rollout = PrivateApi(controller, key_of_environment()).ask("GET", "/rollout")["rollout"]
        except ServerError as error:
            said.append(f"what became of the last rollout is not known: {error}")
    for night in accepted:
        decision, reason = _decision_of(night, rollout, root)
        if decision and decision != night.decision:
            ledger.decide(night, decision, reason)
            said.append(f"night {night.id}: {'live' if decision == 'live' else 'taken back'} ({reason})")
    return said


def _decision_of(night: Night, rollout: dict[str, Any] | None, root: Path) -> tuple[Decision | None, str]:
    if night.told("release").get("by") == "rollout":
        if rollout is None or rollout["name"] != version_name(night):
            return None, ""
        return ENDS.get(rollout["phase"]), str(rollout["reason"])
    moves = [line for line in history(root) if line["event"] == SERVED]
    build = str(night.told("build").get("build"))
    last = next((number for number in reversed(range(len(moves))) if moves[number]["build"] == build), None)
    if last is None:
        return None, ""
    if any(move.get("by") == BACK for move in moves[last + 1 : last + 2]):
        return "back", f"{moves[last + 1]['build']} is served again"
    return ("live", "promoted") if served_name(root) == build else (None, "")
