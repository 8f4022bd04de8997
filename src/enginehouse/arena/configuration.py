"""How a user configures what happens within a team."""

from __future__ import annotations

from typing import Literal

from enginehouse.arena.records import RANDOM, DeliberationSpec
from enginehouse.core.strict_model import StrictModel


class DeliberationConfig(StrictModel):
    """How a team of several agents decides. The rules are part of every prompt."""

    willingness: Literal["poll", "order", "none"] = "poll"
    """How the next speaker is chosen: poll asks all members who have not spoken how much they want
    to, from 0 to 3; order draws a seeded order; none follows the members' numbers."""
    votes: Literal["constrained", "parsed"] = "constrained"
    """constrained: the engine, if it can, restricts a vote to the options; parsed: votes are
    read from free text."""
    tie: str = RANDOM
    """What to do when several options have the most votes: random, or an option."""
    no_vote: str = RANDOM
    """What to do when no vote is valid: random, or an option."""

    def spec(self) -> DeliberationSpec:
        """The same, as it is recorded."""
        return DeliberationSpec(
            willingness=self.willingness, votes=self.votes, tie=self.tie, no_vote=self.no_vote
        )
