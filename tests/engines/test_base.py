"""What is the same for every engine."""

from __future__ import annotations

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.engines.base import DTypeFlags, LoraFlags, require_api_key
from enginehouse.engines.options import ServerOptions


def test_an_open_address_requires_a_key():
    """A server that others can reach has one; on loopback it may do without."""
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0"):
        require_api_key(ServerOptions(host="0.0.0.0"))
    require_api_key(ServerOptions(host="0.0.0.0", api_key="k"))
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        require_api_key(ServerOptions(host=host))


@pytest.mark.parametrize(
    ("command", "rank"),
    [
        (["vllm", "--max-lora-rank", "64"], 64),
        (["vllm", "--max-lora-rank=8", "--max-lora-rank=32"], 32),
        (["vllm"], 16),
        (["vllm", "--max-lora-rank", "many"], 16),
    ],
)
def test_the_rank_in_a_command_line(command: list[str], rank: int):
    """The last one counts; the default is the engine's."""
    assert LoraFlags(default_rank=16).rank_in(command) == rank


def test_ranks():
    """The smallest value that the flag takes; a rank that is too large stays what it is."""
    flags = LoraFlags(ranks=(8, 16))
    assert [flags.rank_for(rank) for rank in (1, 8, 9, 17)] == [8, 8, 16, 17]
    assert (flags.largest, LoraFlags().largest) == (16, None)


def test_adapters_in_a_command_line():
    """By any of the flags that enable them, in either spelling."""
    flags = LoraFlags(enable=("--enable-lora", "--lora-paths"))
    assert flags.are_enabled(["server", "--enable_lora"])
    assert flags.are_enabled(["server", "--lora-paths=a=/a"])
    assert not flags.are_enabled(["server", "--lora-rank", "8"])


def test_the_default_type():
    """float16 stays float16 where the engine keeps it; everything else becomes bfloat16."""
    keeps, rounds = DTypeFlags(), DTypeFlags(keeps_float16=False)
    assert [flags.default_for("float16") for flags in (keeps, rounds)] == ["float16", "bfloat16"]
    assert [flags.default_for("float32") for flags in (keeps, rounds)] == ["bfloat16"] * 2
