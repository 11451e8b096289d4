"""`anchors bake`: a low-rank basis of the TLM output, fitted on a table, measured on places that it never saw."""
