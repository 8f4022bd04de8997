"""From a plan to something that answers: servers, supervision, adapters, weights."""
