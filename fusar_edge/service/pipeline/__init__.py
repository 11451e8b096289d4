"""Scenes of the journal -> tiles -> answers, as overlapped stages.

read -> triage -> anchors     one thread, the most urgent scene's next tile
   | ready tiles, bounded
vision (batched) -> ask       one thread for each engine
   | outcome
journal                       one transaction for each tile
"""

from fusar_edge.service.pipeline.governor import Governor, NoLimits, WorkLimits
from fusar_edge.service.pipeline.pipeline import Pipeline, PipelineStatus

__all__ = ["Governor", "NoLimits", "Pipeline", "PipelineStatus", "WorkLimits"]
