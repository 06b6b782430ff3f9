"""The way of a version, phase by phase, and back.

loading -> shadow -> canary 1% -> 5% -> 25% -> 50% -> promoting -> done
      |________|_________|____________________________|_________|-> returning -> back
"""

from contextlib import suppress
from pathlib import Path

from tritonrank.serve.rollout.book import RULES, Book
from tritonrank.serve.rollout.gateways import Gateways, View, agrees
from tritonrank.serve.rollout.judge import Reading, readings
from tritonrank.serve.rollout.rules import Rules
from tritonrank.serve.rollout.state import ENDED, GatewayVersion, Rollout
from tritonrank.serve.rollout.tritons import Tritons, TritonView

MOST_REFUSALS = 10
"""Looks in a row at which a gateway answers and does not take the version; then that is the version's fault."""
HOLD_LINE_SECONDS = 60.0
"""Between two lines that say why it still waits; what it waits for may change with every look."""
RETURN_SECONDS = 60.0
"""How long it is waited for a gateway that does not answer, when a version is taken back."""
FIRST = "first"
"""What gateways call the version that their own flags name."""


class Journey:
    """Of one version after the other; used by one thread at a time.

    Args:
        book: of the controller.
        gateways, tritons: all of them.
    """

    def __init__(self, book: Book, gateways: Gateways, tritons: Tritons) -> None:
        self.book = book
        self._gateways, self._tritons = gateways, tritons
        self._refusals = 0
        self._told_of: tuple[object, ...] = ()
        self._told_at = 0.0
        self.views: list[View] = []
        self.triton_views: list[TritonView] = []

    def look(self) -> None:
        """Do what is due now.

        Raises:
            OSError, TritonRankError: nothing can be looked up, or the state cannot be written.
        """
        self._unload_what_is_due()
        self._reconcile()
        rollout = self.book.rollout
        if self._tritons and not self.book.is_under_way:
            # A Triton that is started later, as fleets do, has what it was started with; the gateways ask for this.
            kept = rollout if rollout is not None and rollout.phase == "done" and rollout.source else None
            self.triton_views = self._tritons.keep(kept.name, kept.source) if kept else self._tritons.look()
        if rollout is None or rollout.phase in ENDED:
            return
        {
            "loading": self._load,
            "shadow": self._judge,
            "canary": self._judge,
            "promoting": self._promote_all,
            "returning": self._return,
        }[rollout.phase](rollout)

    def _reconcile(self) -> None:
        """Bring every gateway to what it should have now. Shadows and canaries of others are left alone."""
        rollout, live = self.book.rollout, self.book.state.live
        wish: dict[str, GatewayVersion] = {"live": live} if live is not None else {}
        gone = ""
        if rollout is not None:
            rules, version = rollout.rules, rollout.version
            if rollout.phase in ("shadow", "canary"):
                wish["shadow"] = version | {"share": rules["shadow_share"]}
            if rollout.phase == "canary":
                wish["canary"] = version | {"share": rollout.share}
            if rollout.phase != "promoting":  # the canary goes on until live is the same
                gone = rollout.name
        self.views = self._gateways.reconcile(wish, gone)

    def _in_step(self, rollout: Rollout) -> str:
        """What keeps the gateways from being as they should; "" for nothing."""
        if not self.views:
            return "there is no gateway"
        refused = [view for view in self.views if view.was_refused]
        self._refusals = self._refusals + 1 if refused else 0
        if self._refusals >= MOST_REFUSALS and rollout.phase != "returning":
            self._refusals = 0
            self.go_back(f"a gateway does not take it: {refused[0].problem}", RULES)
            return refused[0].problem
        return next((view.problem for view in self.views if view.problem), "")

    def _load(self, rollout: Rollout) -> None:
        if not rollout.before:
            if waits := self._in_step(rollout):
                self._wait(rollout, waits)
                return
            rollout.before = dict(self.views[0].versions["live"])
        if rollout.source and not rollout.before_in_triton:
            self.triton_views = self._tritons.look()
            first = next((view.versions for view in self.triton_views if view.versions), None)
            if first is not None:
                found = first.find(first.live)
                rollout.before_in_triton = {"name": first.live, "source": found.source if found else ""}
        if waits := self._in_tritons(rollout):
            self._wait(rollout, waits)
            return
        if rollout.phase == "loading":
            self.book.enter("shadow", 0, 0.0, self.views)
            self.book.decide("shadow", "loaded and proved everywhere", RULES)

    def _in_tritons(self, rollout: Rollout) -> str:
        """Let every Triton have the version; says what is missing, "" for nothing."""
        if not rollout.source:
            return ""
        self.triton_views = self._tritons.load(rollout.name, rollout.source)
        found = [(view, view.find(rollout.name)) for view in self.triton_views]
        failed = next(((view, one) for view, one in found if one is not None and one.state == "failed"), None)
        if failed is not None and failed[1] is not None:
            self.go_back(f"{failed[0].url} could not load it: {failed[1].reason}", RULES)
            return "failed"
        for view, one in found:
            if one is None or not one.is_ready:
                return view.problem or f"{view.url}: {one.state if one else 'absent'}"
            if not rollout.version:
                rollout.version = {
                    "name": rollout.name,
                    "triton": list(rollout.before["triton"]),
                    "model": one.model,
                    **{name: path for name in ("blend", "golden") if (path := _here(getattr(one, name)))},
                }
        return "" if found else "there is no Triton"

    def _judge(self, rollout: Rollout) -> None:
        self.book.count(rollout, self.views)
        waits = self._in_tritons(rollout) or self._in_step(rollout)
        if rollout.phase not in ("shadow", "canary"):
            return  # that took it back
        now, rules = self.book.clock(), Rules.made(rollout.rules, "rules")
        if not rollout.since and not waits:
            rollout.since = now
        self.book.readings = readings(rules, self.book.figures(rollout), is_canary=rollout.phase == "canary")
        if bad := next((one for one in self.book.readings if one.verdict == "bad"), None):
            self.go_back(_said(bad), RULES, bad.rule)
            return
        minutes = (now - (rollout.since or now)) / 60
        unsure = next((one for one in self.book.readings if one.verdict == "unsure"), None)
        if waits or not rollout.since:
            self._wait(rollout, waits)
        elif minutes < rules.least_minutes:
            self._wait(rollout, f"least_minutes: {rules.least_minutes:g} at each step")
        elif unsure is None and not rollout.is_held:
            self.step_on(f"all {len(self.book.readings)} rules", RULES)
        else:
            self._wait(rollout, "held" if unsure is None else f"unsure: {unsure.rule} ({unsure.what})")

    def _wait(self, rollout: Rollout, reason: str) -> None:
        """Note why it waits; a new reason is a line of the ledger. Too long, and the rules say what becomes of it."""
        minutes = (self.book.clock() - rollout.began) / 60
        is_late = minutes > rollout.rules["most_minutes"] and not rollout.is_held
        if is_late and rollout.rules["when_undecided"] == "back":
            self.go_back(f"undecided after {minutes:.0f} minutes: {reason}", RULES)
            return
        reason = f"undecided after {rollout.rules['most_minutes']:g} minutes: {reason}" if is_late else reason
        now, phase = self.book.clock(), (rollout.id, rollout.phase, rollout.step, is_late)
        is_new = phase != self._told_of or now - self._told_at > HOLD_LINE_SECONDS
        if reason != rollout.reason and is_new:
            self._told_of, self._told_at = phase, now
            self.book.decide("hold", reason, RULES)
        else:
            rollout.reason = reason
            self.book.save()

    def step_on(self, reason: str, by: str, *, to_live: bool = False) -> None:
        """To the next share of users, or to live; raises NotNowError."""
        rollout = self.book.under_way()
        shares = rollout.rules["canary_shares"]
        if to_live or rollout.step == len(shares):
            self.book.enter("promoting", rollout.step, rollout.share, self.views)
            self.book.state.live = rollout.version
            self.book.decide("promote", f"to live: {reason}", by)
            return
        share = shares[rollout.step]
        self.book.enter("canary", rollout.step + 1, share, self.views)
        self.book.decide("promote", f"to {100 * share:g}% of the users: {reason}", by)

    def _promote_all(self, rollout: Rollout) -> None:
        waits = self._in_step(rollout)
        if rollout.phase != "promoting":
            return
        if waits or not all(agrees(view.versions.get("live"), rollout.version, "live") for view in self.views):
            self._wait(rollout, waits or "a gateway does not have it as live yet")
            return
        if rollout.source:
            self.triton_views = self._tritons.live(rollout.name)
            if problem := next((view.problem for view in self.triton_views if view.problem), ""):
                self._wait(rollout, problem)
                return
        self.book.enter("done", rollout.step, 0.0, self.views)
        self._reconcile()
        before = rollout.before_in_triton.get("name")
        if before and before != rollout.name:
            self.book.state.unload[before] = self.book.clock() + 60 * rollout.rules["keep_minutes"]
        self.book.decide("done", f"live at {len(self.views)} gateways", RULES)

    def go_back(self, reason: str, by: str, rule: str = "") -> None:
        """Take the version away from the gateways at once, and begin to bring back what was before."""
        rollout = self.book.rollout
        assert rollout is not None
        was_live = rollout.phase in ("promoting", "done")
        self.book.count(rollout, self.views)
        exposed = self.book.figures(rollout).exposure
        self.book.enter("returning", rollout.step, rollout.share, self.views)
        if was_live and not rollout.source:
            self.book.state.live = rollout.before
        self.book.decide("back", reason, by, rule, exposed)
        with suppress(OSError):  # users first, the next look does the rest
            self._reconcile()

    def _return(self, rollout: Rollout) -> None:
        """Bring back what was before, where it is not any more, and take the version away."""
        state, before = self.book.state, rollout.before_in_triton
        if rollout.source and state.live is not None and state.live["name"] == rollout.name:
            # The Tritons first: what was live may be the plain ensemble `rank`, which is the new version now.
            state.unload.pop(before["name"], None)
            self.triton_views = self._tritons.load(before["name"], before["source"])
            for view in self.triton_views:
                one = view.find(before["name"])
                if one is None or not one.is_ready:
                    self._wait(rollout, view.problem or f"{view.url}: {before['name']} is not ready yet")
                    return
            self.triton_views = self._tritons.live(before["name"])
            if problem := next((view.problem for view in self.triton_views if view.problem), ""):
                self._wait(rollout, problem)
                return
            state.live = rollout.before
            self._reconcile()
        waits = self._in_step(rollout)
        if waits and self.book.clock() - rollout.began < RETURN_SECONDS:
            self._wait(rollout, waits)
            return
        if waits:  # it may still ask for the version, and is told as soon as it answers
            state.unload[rollout.name] = self.book.clock() + 60 * rollout.rules["keep_minutes"]
        elif rollout.source:
            self.triton_views = self._tritons.unload(rollout.name)
            waits = next((_stays(view, rollout.name) for view in self.triton_views if _stays(view, rollout.name)), "")
            if waits and self.book.clock() - rollout.began < RETURN_SECONDS:
                self._wait(rollout, waits)
                return
            if waits:
                state.unload[rollout.name] = self.book.clock()
        if state.live is not None and state.live["name"] == FIRST:
            state.live = None  # a gateway that is started again has it by itself, with what its flags say by then
        self.book.enter("back", rollout.step, 0.0, self.views)
        self.book.decide("returned", waits or "all gateways have what they had", RULES)

    def _unload_what_is_due(self) -> None:
        unload = self.book.state.unload
        for name in [name for name, at in unload.items() if at <= self.book.clock()]:
            views = self._tritons.unload(name)
            if all(view.versions is not None and view.find(name) is None for view in views):
                del unload[name]
                self.book.save()


def _here(path: str | None) -> str | None:
    """A path of the Triton's machine, if it is this one: then it is the gateways', too."""
    return path if path and Path(path).exists() else None


def _stays(view: TritonView, name: str) -> str:
    """Why a Triton has a version still; "" where it is gone."""
    return view.problem or (f"{view.url}: {name} has requests in flight" if view.find(name) is not None else "")


def _said(reading: Reading) -> str:
    told = reading.told()
    return (
        f"{told['rule']} ({told['what']}): {told['value']} of {told['count']}, certainly between {told['low']} and "
        f"{told['high']}; limit {told['limit']}"
    )
