"""What samples for the service's users. One kind of sampling engine is one file, see base."""
