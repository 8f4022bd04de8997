"""Engine environments and model files: found, built and verified before anything is started."""
