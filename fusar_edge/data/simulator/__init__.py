"""Simulated SAR scenes with known truth: what users without data start from, and what the demo shows."""

from fusar_edge.data.simulator.dataset import write_dataset
from fusar_edge.data.simulator.geotiff import write_geotiff
from fusar_edge.data.simulator.scene import SimulatedScene, simulate_scene

__all__ = ["SimulatedScene", "simulate_scene", "write_dataset", "write_geotiff"]
