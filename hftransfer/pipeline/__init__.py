"""The steps of a run, shared by training and by trials."""
