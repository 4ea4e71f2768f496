"""A stand-in for the outside world on one machine: the part of Stripe's API that Ironcart uses,
a mailbox behind SMTP, and faults on demand. Run it with `python -m ironcart.embedded.sandbox`.
"""
