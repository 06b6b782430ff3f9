"""A page that was shown, as whoever shows it tells the log."""

import msgspec


class Impression(msgspec.Struct, frozen=True):
    """A page that was shown.

    Attributes:
        page: token of its list.
        user_id: to whom; empty for nobody that is known.
        query: what was searched for.
        shown_at: unix seconds.
        artifact: what ranked; empty where nothing did.
        item_ids: from the top.
        positions: of each in the whole list, from 0.
        policy_positions: where each stood before neighbours changed places by lot.
        move_up, move_down: how likely each was to stand one place further up, or down, than that; how likely it was to
            stand where it stands, its propensity, follows.
    """

    page: str
    user_id: str
    query: str
    shown_at: float
    artifact: str
    item_ids: tuple[str, ...]
    positions: tuple[int, ...]
    policy_positions: tuple[int, ...]
    move_up: tuple[float, ...]
    move_down: tuple[float, ...]
