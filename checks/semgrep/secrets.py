"""What the rules of secrets.yaml have to find, and what they have to leave alone."""

import hmac

import structlog


def chatty(settings, error, contact):
    # ruleid: no-secret-in-a-log
    structlog.get_logger().info("Starting", settings=settings)
    # ruleid: no-secret-in-a-log
    structlog.get_logger().warning("No broker", url=settings.nats_url)
    # ruleid: no-secret-in-a-log
    structlog.get_logger().error(f"Cannot mail {contact.email}")
    # ruleid: no-secret-in-a-log
    structlog.get_logger().info("Calling", key=str(settings.stripe_api_key))
    # ruleid: no-secret-in-an-error
    raise ValueError(f"cannot connect to {settings.database_url}")


def discreet(settings, order_id, error):
    # ok: no-secret-in-a-log
    structlog.get_logger().info("Starting", service="orders", port=settings.port)
    # ok: no-secret-in-a-log
    structlog.get_logger().error("Cannot mail", order_id=order_id, error=str(error))
    # ok: no-secret-in-an-error
    raise ValueError("IRONCART_DATABASE_URL is wrong") from error


def letter_by_letter(given, signature, entry, secret):
    # ruleid: no-secret-compared-by-its-letters
    if given == signature:
        return True
    # ruleid: no-secret-compared-by-its-letters
    return given != entry.secret


def in_constant_time(given, signature):
    # ok: no-secret-compared-by-its-letters
    return hmac.compare_digest(given, signature)
