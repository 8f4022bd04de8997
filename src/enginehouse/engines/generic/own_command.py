"""A generic server's command: the user's."""

from __future__ import annotations

from enginehouse.engines.own_command import OwnCommand

OWN_COMMAND = OwnCommand(by_user=True)
