"""What every trainer must do, by subject; see check_trainer."""
