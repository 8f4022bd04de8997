"""Which log-probabilities a server gives is found out by asking."""

from __future__ import annotations

import pytest
from tests.support.token_sampler import TokenSampler

from enginehouse.core.errors import ConfigurationError
from enginehouse.tinker.sampling.scale import require_scale


class Scaling(TokenSampler):
    """Divides by the temperature what it says of samples."""

    async def sample(self, request):
        """As a server with processed_logprobs."""
        temperature = request.parameters.temperature or 1.0
        self.changes = {"base": lambda values, _: values / temperature}
        return await super().sample(request)


@pytest.mark.parametrize(("sampler", "scale"), [(TokenSampler, "raw"), (Scaling, "scaled")])
async def test_the_setting_must_be_the_servers(sampler, scale):
    """The error names the flag and the other setting."""
    await require_scale(sampler(), scale)
    other = "scaled" if scale == "raw" else "raw"
    with pytest.raises(ConfigurationError, match=f"{scale} log-probabilities") as caught:
        await require_scale(sampler(), other)
    flag = "processed_logprobs" if other == "scaled" else "raw_logprobs"
    assert f"--logprobs-mode {flag}" in str(caught.value)
