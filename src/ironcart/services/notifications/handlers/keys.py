"""Keys of jobs: mail and webhooks share one table of jobs, and each leases its own."""

from typing import Final

from ironcart.services.notifications.store import MAIL, WEBHOOK, Key

# No name has a colon. As conditions in SQL, word for word those of the indexes of jobs.
WEBHOOK_PREFIX: Final = "webhook:"
MAIL_JOBS: Final = f"key NOT LIKE '{WEBHOOK_PREFIX}%'"
WEBHOOK_JOBS: Final = f"key LIKE '{WEBHOOK_PREFIX}%'"


def job_key(key: Key) -> str:
    """The job of a notice: `ORD-1/confirmed`, or `webhook:WHE-1/ORD-1/confirmed`."""
    order_id, template, channel, endpoint_id = key
    place = f"{WEBHOOK_PREFIX}{endpoint_id}/" if channel == WEBHOOK else ""
    return f"{place}{order_id}/{template}"


def notice_key(job: str) -> Key:
    """The notice that a job is about."""
    if not job.startswith(WEBHOOK_PREFIX):
        order_id, _, template = job.partition("/")
        return order_id, template, MAIL, ""
    endpoint_id, order_id, template = job.removeprefix(WEBHOOK_PREFIX).split("/")
    return order_id, template, WEBHOOK, endpoint_id
