"""From a config to a record, sets of runs, what they cost."""
