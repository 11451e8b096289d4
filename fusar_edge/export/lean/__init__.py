"""Export of models that do not fit in memory: graphs traced without weights, weights streamed layer by layer."""
