"""The packaged groups that a launch configuration's `defaults` choose from."""
