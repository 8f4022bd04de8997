"""Games as pure state machines: no clock, no network, no randomness but the seed's."""
