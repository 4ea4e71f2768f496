"""Certificates are renewed while a service runs: it looks for new ones, and shows when they end."""

import asyncio

import structlog

from ironcart.toolkit import telemetry
from ironcart.toolkit.outcomes import Refused
from ironcart.toolkit.tls import Tls

LOOK_EVERY_S = 30.0


async def renew(certificates: Tls) -> None:
    """Take up certificates that have changed, until cancelled; bad ones are said and not taken."""
    while True:
        telemetry.certificate_expires.set(certificates.expires_at.timestamp())
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            if certificates.refresh():
                ends = certificates.expires_at.isoformat()
                structlog.get_logger().info("Certificates renewed", expires_at=ends)
        except Refused as error:
            structlog.get_logger().error("Certificates not renewed", error=str(error))
