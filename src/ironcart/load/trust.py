"""Whose certificates a load run trusts, and what is said of one that it does not."""

import ssl

import aiohttp

from ironcart.load.plan import InvalidPlanError


def known_by(ca: str) -> ssl.SSLContext | bool:
    """Trust the issuer in this file, or whom this machine knows; may raise `InvalidPlanError`."""
    try:
        return ssl.create_default_context(cafile=ca) if ca else True
    except OSError as error:
        raise InvalidPlanError(f"no issuer can be read from {ca}: {error}") from None


def untrusted(url: str, error: aiohttp.ClientConnectorCertificateError) -> InvalidPlanError:
    """Say that a run cannot go on: no repeat would change whom we trust."""
    why = f"{url} shows a certificate that is not trusted: {error.certificate_error}"
    return InvalidPlanError(f"{why}; if another issuer made it set IRONCART_TLS_DIR")
