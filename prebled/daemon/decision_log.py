"""One debug line per decision on a request, from the same object that `prebled explain` shows."""

from __future__ import annotations

import structlog

from prebled.core.decisions import AnyDecision, Place, Reject


class DecisionLog:
    """Says where requests go, or why they go nowhere."""

    def __init__(self) -> None:
        # Bound once: a decision is made in less time than structlog takes to find out that nobody wants the line.
        self._log = structlog.get_logger().bind()

    def write(self, decision: AnyDecision) -> None:
        """Log one decision; those that only follow from others are left out."""
        match decision:
            case Place(request_id, placement):
                self._log.debug(
                    "placed",
                    request_id=request_id,
                    worker=placement.worker_id,
                    policy=placement.policy,
                    mode=placement.mode,
                    matched_tokens=placement.matched_tokens,
                    missed_tokens=placement.missed_tokens,
                    adjusted=placement.adjusted,
                )
            case Reject(request_id, code, message):
                self._log.debug("refused", request_id=request_id, code=code, error=message)
