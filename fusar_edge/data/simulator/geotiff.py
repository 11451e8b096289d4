"""Simulated scenes as GeoTIFF: float32 linear power in a UTM zone. The only module here that needs rasterio."""

from __future__ import annotations

from pathlib import Path

from fusar_edge.data.simulator.scene import SimulatedScene
from fusar_edge.manifest import output_file


def tags_from_scene(scene: SimulatedScene) -> dict[str, str]:
    """Tags that say what the file is, first of all that nobody measured it."""
    return {
        "TIFFTAG_IMAGEDESCRIPTION": "simulated SAR scene (fusar-edge), not a measurement",
        "TIFFTAG_SOFTWARE": "fusar-edge simulate",
        "SIMULATED": "YES",
        "SEED": str(scene.seed),
        "KIND": scene.kind,
        "VALUES": "linear power (sigma0)",
        "SPACING_M": f"{scene.spacing_m:.6g}",
        "RESOLUTION_M": f"{scene.resolution_m:.6g}",
        "LOOKS": str(scene.looks),
        "GAIN_DB": f"{scene.gain_db:.6g}",
        "SHIPS": str(len(scene.ships)),
    }


def write_geotiff(path: Path, scene: SimulatedScene, *, force: bool = False) -> None:
    """One band, tiled, deflate. Same scene, same bytes. OutputExistsError unless `force`."""
    import rasterio
    from rasterio.transform import Affine

    height, width = scene.power.shape
    with (
        output_file(path, force=force) as work,
        rasterio.open(
            work,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=1,
            dtype="float32",
            crs=f"EPSG:{scene.epsg}",
            transform=Affine(*scene.transform),
            compress="deflate",
            zlevel=1,  # speckle does not compress: level 9 saves 1 % and takes four times as long
            predictor=3,
            tiled=True,
            blockxsize=256,
            blockysize=256,
        ) as file,
    ):
        file.write(scene.power, 1)
        file.update_tags(**tags_from_scene(scene))
