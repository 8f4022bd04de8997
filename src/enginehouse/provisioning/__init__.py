"""Engine environments and model files: found, built, verified, before anything is started."""
