"""Sources -> table: pieces of work, workers, and the unfinished table from which a stopped build goes on."""
