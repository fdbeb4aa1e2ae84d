"""The pure part: bytes, facts, routes, and time as an argument. No sockets, no clock, no files, no event loop.

What is decided here is decided once: the data plane, `streamgw check` and `streamgw explain` all call these functions.
"""
