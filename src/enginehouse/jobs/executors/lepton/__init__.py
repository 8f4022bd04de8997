"""Jobs on Lepton."""
