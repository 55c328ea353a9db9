"""Records -> tables, statistics and figures."""
