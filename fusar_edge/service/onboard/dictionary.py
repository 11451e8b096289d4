"""Text that both ends know: packets say where they repeat it. A new text needs a new FORMAT of packets."""

from __future__ import annotations

WORDS = """\
S1A_IW_GRDH_1SDV_S1B_IW_GRDH_1SDV_S1C_IW_GRDH_1SDV_ -vv-hh.tiff.tif
vehicle tank aircraft airplane bridge oil tank storage tank harbor harbour ship
The scene shows SAR image with bright scattering targets backscatter smooth dark water surface speckle
shoreline coastal urban residential industrial buildings vegetation mountain river lake agricultural fields
runway airport road network railway dock container terminal vessels moored anchored open water
 Farming and forestry Settlement Patchwork of fields, woods and settlements Field and forest edges, no coast
 Dry land, mostly farmland forest sand built-up land port ground No visible use of the water
 Irregular natural shoreline Straight quay edges with piers and basins Two facing shorelines
Land on the upper left lower right side centre , ships along the quays, ships on open water, empty water
 Scattered bright buildings on the Many bright buildings on the Dense bright buildings on the
 Main road crossing the land and a street grid Street grid between buildings River covers Port for loading and \
berthing ships One single ship Ships close together in one place No ships Empty water surface No water
A SAR image with no ship targets. A SAR image with one ship target: upper left, upper centre, upper right, \
middle left, centre, middle right, lower left, lower centre, lower right.
A SAR image with two three four five six seven eight nine ten ship targets:
Terrain: Water over a small part a third half two thirds nearly all of the scene, then farmland
Terrain: Open water without land
Functionality: Shipping water
Distribution: Ships spread over 2 of nine cells
Layout: Ships alone on the sea
Boundary: No shoreline in view
Buildings: No buildings
Roads: No roads
Water: Sea covers nearly all of the scene"""
"""The likeliest at the end: nearest to what follows. Phrases of the canonical caption fields come first among them."""

DICTIONARY = WORDS.encode()
