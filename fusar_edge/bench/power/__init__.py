"""Power and energy of the machine while it works, each number with the rail that it was measured on."""
