"""What trains the adapters. One kind of trainer is one file, implementing the protocol in base."""
