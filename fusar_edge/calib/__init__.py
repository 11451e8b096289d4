"""INT8: activation ranges, explicit Q/DQ graphs, and the gate on what they cost."""
