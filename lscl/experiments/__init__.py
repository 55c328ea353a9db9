"""From a config to a record, sets of runs, and their cost."""
