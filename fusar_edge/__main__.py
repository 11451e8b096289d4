"""`python -m fusar_edge` is `fusar-edge`."""

from fusar_edge.cli import main

main()
