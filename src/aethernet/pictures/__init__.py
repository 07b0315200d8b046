"""Reading, writing and resampling pictures."""
