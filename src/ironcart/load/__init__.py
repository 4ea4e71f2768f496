"""The load generator: places orders by the clock, logs each request and answer before it counts,
and follows every accepted order to its end.
"""
