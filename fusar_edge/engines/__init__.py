"""From a folder of graphs and a device spec to a sealed bundle."""
