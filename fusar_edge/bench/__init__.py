"""How fast, how warm, how much energy, how right: measured on the device, reported so that a reader can check it."""
